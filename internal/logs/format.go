package logs

import (
	"bytes"
	"encoding/json"
	"fmt"
	"time"
	"unicode/utf8"
)

const hex = "0123456789abcdef"

// appendEscaped appends b as the inside of a JSON string, byte for byte as
// Docker's json-file driver does (moby daemon/logger/jsonfilelog/jsonlog):
// bytes that are no UTF-8 become U+FFFD, and <, >, & are escaped.
func appendEscaped(dst, b []byte) []byte {
	start := 0
	for i := 0; i < len(b); {
		c := b[i]
		if c < utf8.RuneSelf {
			if plain[c] {
				i++
				continue
			}
			dst = append(dst, b[start:i]...)
			switch c {
			case '\\', '"':
				dst = append(dst, '\\', c)
			case '\n':
				dst = append(dst, '\\', 'n')
			case '\r':
				dst = append(dst, '\\', 'r')
			default:
				dst = append(dst, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
			}
			i++
			start = i
			continue
		}
		r, size := utf8.DecodeRune(b[i:])
		switch {
		case r == utf8.RuneError && size == 1:
			dst = append(append(dst, b[start:i]...), `\ufffd`...)
		case r == '\u2028' || r == '\u2029': // valid JSON, but not valid JavaScript
			dst = append(append(dst, b[start:i]...), `\u202`...)
			dst = append(dst, hex[r&15])
		default:
			i += size
			continue
		}
		i += size
		start = i
	}
	return append(dst, b[start:]...)
}

// plain says which ASCII characters stand for themselves.
var plain = func() (t [utf8.RuneSelf]bool) {
	for c := byte(0x20); c < utf8.RuneSelf; c++ {
		t[c] = c != '\\' && c != '"' && c != '<' && c != '>' && c != '&'
	}
	return t
}()

// Line is one record of a log.
type Line struct {
	Stream string // "stdout" or "stderr"
	Time   time.Time
	// Text ends with a newline unless it is a piece of a longer line or the
	// unfinished end of the output. It is the receiver's to keep.
	Text  []byte
	Attrs map[string]string // what the log options asked for; nil without any
}

// decode decodes one record (without its newline). What this package writes is
// decoded by hand; what only means the same is left to encoding/json.
func decode(rec []byte, l *Line) error {
	if decodeOwn(rec, l) {
		return nil
	}
	var v struct {
		Log    string    `json:"log"`
		Stream string    `json:"stream"`
		Time   time.Time `json:"time"`

		Attrs map[string]string `json:"attrs"`
	}
	if err := json.Unmarshal(rec, &v); err != nil {
		return fmt.Errorf("cannot decode a log record: %w", err)
	}
	*l = Line{Stream: v.Stream, Time: v.Time, Text: []byte(v.Log), Attrs: v.Attrs}
	return nil
}

// decodeOwn decodes exactly the layout that Writer writes; false if it is not that.
func decodeOwn(rec []byte, l *Line) bool {
	rest, ok := bytes.CutPrefix(rec, []byte(`{"log":"`))
	if !ok {
		return false
	}
	i := bytes.LastIndex(rest, []byte(`","stream":"`))
	if i < 0 {
		return false
	}
	raw, rest := rest[:i], rest[i+len(`","stream":"`):]
	switch {
	case bytes.HasPrefix(rest, []byte(`stdout","time":"`)):
		l.Stream = "stdout"
	case bytes.HasPrefix(rest, []byte(`stderr","time":"`)):
		l.Stream = "stderr"
	default:
		return false
	}
	rest, ok = bytes.CutSuffix(rest[len(`stdout","time":"`):], []byte(`"}`))
	if !ok {
		return false
	}
	t, err := time.Parse(time.RFC3339Nano, string(rest))
	if err != nil {
		return false
	}
	l.Time = t
	text := make([]byte, 0, len(raw))
	for len(raw) > 0 {
		k := bytes.IndexByte(raw, '\\')
		if k < 0 {
			k = len(raw)
		}
		for _, c := range raw[:k] {
			if c < 0x20 || c == '"' {
				return false
			}
		}
		text = append(text, raw[:k]...)
		if raw = raw[k:]; len(raw) == 0 {
			break
		}
		if len(raw) < 2 {
			return false
		}
		switch raw[1] {
		case '\\', '"':
			text = append(text, raw[1])
		case 'n':
			text = append(text, '\n')
		case 'r':
			text = append(text, '\r')
		case 'u':
			r, ok := hex4(raw[2:])
			if !ok || r >= 0xd800 && r < 0xe000 {
				return false
			}
			text = utf8.AppendRune(text, r)
			raw = raw[4:]
		default:
			return false
		}
		raw = raw[2:]
	}
	if !utf8.Valid(text) {
		return false
	}
	l.Text = text
	return true
}

func hex4(b []byte) (rune, bool) {
	if len(b) < 4 {
		return 0, false
	}
	var r rune
	for _, c := range b[:4] {
		switch {
		case c >= '0' && c <= '9':
			r = r<<4 | rune(c-'0')
		case c >= 'a' && c <= 'f':
			r = r<<4 | rune(c-'a'+10)
		case c >= 'A' && c <= 'F':
			r = r<<4 | rune(c-'A'+10)
		default:
			return 0, false
		}
	}
	return r, true
}
