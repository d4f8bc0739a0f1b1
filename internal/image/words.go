package image

import (
	"fmt"
	"strings"
)

// pair is one key and value of ENV or LABEL.
type pair struct{ key, value string }

// pairs reads the arguments of ENV and LABEL: key=value ..., or the old form
// "key the whole rest".
func pairs(verb, rest string, env []string) ([]pair, error) {
	words, err := splitWords(rest)
	if err != nil {
		return nil, err
	}
	if !strings.Contains(words[0], "=") {
		key, value, ok := strings.Cut(rest, " ")
		if !ok {
			return nil, fmt.Errorf("%s needs key=value", verb)
		}
		words = []string{key + "=" + strings.TrimSpace(value)}
	}
	var out []pair
	for _, w := range words {
		key, value, ok := strings.Cut(w, "=")
		if !ok {
			return nil, fmt.Errorf("%q is not of the form key=value", w)
		}
		var p pair
		if p.key, err = expand(key, env); err != nil {
			return nil, err
		}
		if p.value, err = expand(value, env); err != nil {
			return nil, err
		}
		if p.key == "" {
			return nil, fmt.Errorf("%s has an empty key", verb)
		}
		out = append(out, p)
	}
	return out, nil
}

// expandAll splits into words and expands each.
func expandAll(rest string, env []string) ([]string, error) {
	words, err := splitWords(rest)
	if err != nil {
		return nil, err
	}
	for i := range words {
		if words[i], err = expand(words[i], env); err != nil {
			return nil, err
		}
	}
	return words, nil
}

// splitWords splits at blanks that are neither quoted nor escaped. Quotes and
// backslashes stay, for expand.
func splitWords(s string) ([]string, error) {
	var words []string
	var w strings.Builder
	var quote byte
	flush := func() {
		if w.Len() > 0 {
			words = append(words, w.String())
			w.Reset()
		}
	}
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c == '\\' && quote != '\'' && i+1 < len(s):
			w.WriteByte(c)
			i++
			w.WriteByte(s[i])
			continue
		case quote != 0:
			if c == quote {
				quote = 0
			}
		case c == '"' || c == '\'':
			quote = c
		case c == ' ' || c == '\t':
			flush()
			continue
		}
		w.WriteByte(c)
	}
	if quote != 0 {
		return nil, fmt.Errorf("the quote %c is not closed", quote)
	}
	flush()
	if len(words) == 0 {
		return nil, fmt.Errorf("an argument is missing")
	}
	return words, nil
}

// expand takes quotes and backslashes away and puts variables of env in, as
// Docker does: '...' is literal; within "..." a backslash counts before ", $
// and itself; $VAR, ${VAR}, ${VAR:-default}, ${VAR:+other} are replaced.
func expand(s string, env []string) (string, error) {
	var out strings.Builder
	var quote byte
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case quote == '\'':
			if c == '\'' {
				quote = 0
			} else {
				out.WriteByte(c)
			}
		case c == '\\':
			if i+1 == len(s) {
				out.WriteByte(c)
				break
			}
			i++
			if quote == '"' && s[i] != '"' && s[i] != '$' && s[i] != '\\' {
				out.WriteByte('\\')
			}
			out.WriteByte(s[i])
		case quote == '"' && c == '"':
			quote = 0
		case quote == 0 && (c == '"' || c == '\''):
			quote = c
		case c == '$':
			value, n, err := variable(s[i:], env)
			if err != nil {
				return "", err
			}
			out.WriteString(value)
			i += n - 1
		default:
			out.WriteByte(c)
		}
	}
	if quote != 0 {
		return "", fmt.Errorf("the quote %c is not closed", quote)
	}
	return out.String(), nil
}

// variable reads one variable at the start of s, which begins with "$", and
// tells how many bytes it took.
func variable(s string, env []string) (value string, n int, err error) {
	if !strings.HasPrefix(s, "${") {
		n = 1
		for n < len(s) && isNameByte(s[n], n > 1) {
			n++
		}
		if n == 1 {
			return "$", 1, nil
		}
		value, _ = lookupEnv(env, s[1:n])
		return value, n, nil
	}
	end := strings.IndexByte(s, '}')
	if end < 0 {
		return "", 0, fmt.Errorf("${ is not closed")
	}
	inner := s[2:end]
	k := 0
	for k < len(inner) && isNameByte(inner[k], k > 0) {
		k++
	}
	name, op := inner[:k], inner[k:]
	got, set := lookupEnv(env, name)
	switch {
	case name == "":
		return "", 0, fmt.Errorf("%q names no variable", s[:end+1])
	case op == "":
		return got, end + 1, nil
	case strings.HasPrefix(op, ":-"):
		if got == "" {
			got = op[2:]
		}
		return got, end + 1, nil
	case strings.HasPrefix(op, "-"):
		if !set {
			got = op[1:]
		}
		return got, end + 1, nil
	case strings.HasPrefix(op, ":+"):
		if got != "" {
			got = op[2:]
		}
		return got, end + 1, nil
	case strings.HasPrefix(op, "+"):
		if set {
			got = op[1:]
		}
		return got, end + 1, nil
	}
	return "", 0, fmt.Errorf("%q: only ${NAME}, ${NAME:-default} and ${NAME:+other} are supported", s[:end+1])
}

func isNameByte(c byte, digit bool) bool {
	return c == '_' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || digit && c >= '0' && c <= '9'
}

func lookupEnv(env []string, name string) (string, bool) {
	for _, e := range env {
		if k, v, ok := strings.Cut(e, "="); ok && k == name {
			return v, true
		}
	}
	return "", false
}
