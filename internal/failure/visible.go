package failure

import (
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Visible shows the control characters in a word but those of keep. What comes
// from an image, a container or a registry may hold them, and a terminal would
// obey them (CWE-150).
func Visible(s, keep string) string {
	shown := func(r rune) bool { return unicode.IsControl(r) && !strings.ContainsRune(keep, r) }
	if utf8.ValidString(s) && strings.IndexFunc(s, shown) < 0 {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if !shown(r) {
			b.WriteRune(r)
			continue
		}
		q := strconv.QuoteRuneToASCII(r)
		b.WriteString(q[1 : len(q)-1])
	}
	return b.String()
}
