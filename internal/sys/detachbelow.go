package sys

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// DetachBelow unmounts lazily, last mounted first, whatever is mounted below
// dir in this mount namespace.
func DetachBelow(dir string) error {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("cannot list mounts: %w", err)
	}
	defer f.Close()
	var found []string
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20) // options can fill a page
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		if len(words) < 5 {
			continue
		}
		if at := unescapeMount(words[4]); strings.HasPrefix(at, dir+"/") {
			found = append(found, at)
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("cannot list mounts: %w", err)
	}
	for i := len(found) - 1; i >= 0; i-- {
		if err := Detach(found[i]); err != nil {
			return err
		}
	}
	return nil
}

// unescapeMount undoes the kernel's \040 for blanks in paths.
func unescapeMount(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
