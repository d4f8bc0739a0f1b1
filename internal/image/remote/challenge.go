package remote

import (
	"errors"
	"net/http"
	"net/url"
	"strings"
)

// challenge is one way in that a server offers in WWW-Authenticate.
type challenge struct {
	scheme string            // "basic", "bearer", lower case
	params map[string]string // by lower-case name
}

// parseChallenges reads the WWW-Authenticate headers of an answer (RFC 9110,
// 11.6.1): several challenges in one header, quoted values with escapes, and
// the commas within them. What makes no sense ends the header it is in.
func parseChallenges(h http.Header) []challenge {
	var out []challenge
	for _, v := range h.Values("WWW-Authenticate") {
		out = append(out, parseChallenge(v)...)
	}
	return out
}

func parseChallenge(s string) []challenge {
	var out []challenge
	for {
		s = strings.TrimLeft(s, " \t,")
		scheme, rest := takeToken(s)
		if scheme == "" || len(out) >= 16 {
			return out
		}
		c := challenge{scheme: strings.ToLower(scheme), params: map[string]string{}}
		s = rest
		for {
			name, after, ok := takeName(s)
			if !ok {
				break // another challenge, or the end
			}
			value, after, ok := takeValue(after)
			if !ok {
				return append(out, c)
			}
			if _, twice := c.params[name]; !twice {
				c.params[name] = value
			}
			s = after
		}
		out = append(out, c)
		// What is left begins another challenge, which a comma or a space
		// parts from this one.
		if s != "" && !strings.ContainsAny(s[:1], " \t,") {
			return out
		}
	}
}

// takeName reads "name =" of a parameter, with the comma before it.
func takeName(s string) (name, rest string, ok bool) {
	s = strings.TrimLeft(s, " \t,")
	name, rest = takeToken(s)
	rest = strings.TrimLeft(rest, " \t")
	if name == "" || !strings.HasPrefix(rest, "=") {
		return "", "", false
	}
	return strings.ToLower(name), rest[1:], true
}

func takeValue(s string) (value, rest string, ok bool) {
	s = strings.TrimLeft(s, " \t")
	if !strings.HasPrefix(s, `"`) {
		value, rest = takeToken(s)
		return value, rest, value != ""
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '"':
			return b.String(), s[i+1:], true
		case '\\':
			if i++; i == len(s) {
				return "", "", false
			}
		}
		b.WriteByte(s[i])
	}
	return "", "", false
}

// takeToken reads a token of RFC 9110, 5.6.2.
func takeToken(s string) (token, rest string) {
	i := 0
	for i < len(s) && (s[i] >= 'a' && s[i] <= 'z' || s[i] >= 'A' && s[i] <= 'Z' || s[i] >= '0' && s[i] <= '9' || strings.IndexByte("!#$%&'*+-.^_`|~", s[i]) >= 0) {
		i++
	}
	return s[:i], s[i:]
}

// parseNext finds the address of rel="next" in Link headers (RFC 8288), as
// registries send it with a page of a list. It must be on the host of page.
func parseNext(page *url.URL, h http.Header) (*url.URL, error) {
	for _, v := range h.Values("Link") {
		for v != "" {
			_, rest, ok := strings.Cut(v, "<")
			if !ok {
				break
			}
			target, rest, ok := strings.Cut(rest, ">")
			if !ok {
				break
			}
			next := false
			for {
				rest = strings.TrimLeft(rest, " \t;")
				name, after, ok := takeName(rest)
				if !ok || strings.HasPrefix(rest, ",") {
					break
				}
				value, after, ok := takeValue(after)
				if !ok {
					return nil, errors.New("the registry sent a damaged Link header")
				}
				next = next || name == "rel" && strings.EqualFold(value, "next")
				rest = after
			}
			if next {
				to, err := follow(page, target)
				if err != nil {
					return nil, err
				}
				if to.Host != page.Host {
					return nil, errors.New("the registry continues a list on another host")
				}
				return to, nil
			}
			v = rest
		}
	}
	return nil, nil
}
