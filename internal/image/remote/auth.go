package remote

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/singleflight"
)

// clientID is the name under which token servers know this program.
const clientID = "proa"

// token is what a token server gave.
type token struct {
	value   string
	refresh string // a token that can be used instead of the password
	until   time.Time
}

// session is what one host has asked one person for, and what it got.
type session struct {
	c    *Client
	host string
	cred Credentials

	fetch *singleflight.Group // by scopes

	mu     sync.Mutex
	asked  *challenge       // how the host wants to be answered, once it has said so
	tokens map[string]token // by scopes
}

// authorize gives a request to the session's own host what that wants. It does
// nothing for other hosts, and nothing before the host has asked.
func (s *session) authorize(ctx context.Context, req *http.Request, scopes []string) error {
	if req.URL.Host != s.host {
		return nil
	}
	if s.cred.RegistryToken != "" {
		req.Header.Set("Authorization", "Bearer "+s.cred.RegistryToken)
		return nil
	}
	s.mu.Lock()
	asked := s.asked
	s.mu.Unlock()
	switch {
	case asked == nil:
		return nil
	case asked.scheme == "basic":
		if s.cred.Username != "" || s.cred.Password != "" {
			req.SetBasicAuth(s.cred.Username, s.cred.Password)
		}
		return nil
	}
	t, err := s.token(ctx, asked, scopes)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+t.value)
	return nil
}

// challenged takes note of a 401. again tells whether another attempt can do
// better: used is the Authorization that was refused.
func (s *session) challenged(resp *http.Response, scopes []string, used string) (again bool, err error) {
	if s.cred.RegistryToken != "" {
		return false, nil
	}
	var pick *challenge
	for _, c := range parseChallenges(resp.Header) {
		switch {
		case c.scheme == "bearer" && c.params["realm"] != "":
			pick = &c
		case c.scheme == "basic" && pick == nil:
			pick = &c
		}
	}
	if pick == nil {
		return false, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = pick
	if pick.scheme == "basic" {
		return used == "" && s.cred.Username+s.cred.Password != "", nil
	}
	// A token that was refused is too old, or for another scope.
	key := scopeKey(pick, scopes)
	if t := s.tokens[key]; used == "Bearer "+t.value {
		delete(s.tokens, key)
	}
	return true, nil
}

// scopeKey joins what is wanted with what the host says that is needed.
func scopeKey(c *challenge, scopes []string) string {
	all := slices.Clone(scopes)
	if more := c.params["scope"]; more != "" && len(scopes) == 0 {
		all = append(all, strings.Fields(more)...)
	}
	slices.Sort(all)
	return strings.Join(slices.Compact(all), " ")
}

// token gives a token for scopes, fetching it if there is none that will still
// be good in a moment. Two that want the same one fetch it once.
func (s *session) token(ctx context.Context, c *challenge, scopes []string) (token, error) {
	key := scopeKey(c, scopes)
	s.mu.Lock()
	t, ok := s.tokens[key]
	s.mu.Unlock()
	if ok && time.Now().Before(t.until) {
		return t, nil
	}
	for {
		v, err, shared := s.fetch.Do(key, func() (any, error) {
			t, err := s.ask(ctx, c, strings.Fields(key), false)
			if err == nil {
				s.mu.Lock()
				s.tokens[key] = t
				s.mu.Unlock()
			}
			return t, err
		})
		if err != nil && shared && ctx.Err() == nil && errors.Is(err, context.Canceled) {
			continue // it was another one who gave up
		}
		return v.(token), err
	}
}

// ask fetches a token from the server that the host's challenge names: with
// the refresh token by POST (OAuth 2), with name and password by GET, as every
// token server of Docker's protocol understands it.
func (s *session) ask(ctx context.Context, c *challenge, scopes []string, offline bool) (token, error) {
	realm, err := s.realm(c)
	if err != nil {
		return token{}, err
	}
	q := realm.Query()
	if v := c.params["service"]; v != "" {
		q.Set("service", v)
	}
	q.Del("scope")
	header := http.Header{}
	method, body := http.MethodGet, ""
	switch {
	case s.cred.IdentityToken != "":
		q.Set("grant_type", "refresh_token")
		q.Set("refresh_token", s.cred.IdentityToken)
		q.Set("client_id", clientID)
		q.Set("scope", strings.Join(scopes, " "))
		method, body = http.MethodPost, q.Encode()
		header.Set("Content-Type", "application/x-www-form-urlencoded")
	default:
		for _, sc := range scopes {
			q.Add("scope", sc)
		}
		if s.cred.Username != "" {
			q.Set("account", s.cred.Username)
		}
		if offline {
			q.Set("offline_token", "true")
			q.Set("client_id", clientID)
		}
		realm.RawQuery = q.Encode()
		if s.cred.Username != "" || s.cred.Password != "" {
			r := &http.Request{Header: header}
			r.SetBasicAuth(s.cred.Username, s.cred.Password)
		}
	}
	// A session of its own, which knows no credentials: the header above is all
	// that is sent, and a redirect to another host ends it.
	anyone := s.c.session(realm.Host, Credentials{})
	resp, err := anyone.do(ctx, call{method: method, url: realm, header: header, body: text(body), same: true})
	if err != nil {
		return token{}, fmt.Errorf("cannot get a token for registry %s: %w", s.host, s.loginHint(err))
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxToken+1))
	if err != nil {
		return token{}, fmt.Errorf("cannot get a token for registry %s: %w", s.host, err)
	}
	if len(raw) > maxToken {
		return token{}, invalid("cannot get a token for registry %s: the answer of %s is larger than %d bytes", s.host, realm.Host, maxToken)
	}
	var doc struct {
		Token   string  `json:"token"`
		Access  string  `json:"access_token"`
		Refresh string  `json:"refresh_token"`
		Expires float64 `json:"expires_in"` // seconds
	}
	if err := json.Unmarshal(raw, &doc); err != nil {
		return token{}, invalid("cannot get a token for registry %s: the answer of %s is not JSON: %w", s.host, realm.Host, err)
	}
	t := token{value: doc.Token, refresh: doc.Refresh}
	if t.value == "" {
		t.value = doc.Access
	}
	if t.value == "" || strings.ContainsFunc(t.value, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return token{}, invalid("cannot get a token for registry %s: the answer of %s holds none", s.host, realm.Host)
	}
	// A minute is what the protocol says where the server does not.
	life := min(max(doc.Expires, 60), 24*3600)
	t.until = time.Now().Add(time.Duration(life*float64(time.Second)) * 9 / 10)
	return t, nil
}

// realm is the token server that a challenge names, if it may get credentials.
func (s *session) realm(c *challenge) (*url.URL, error) {
	u, err := url.Parse(c.params["realm"])
	if err != nil || u.Host == "" || u.User != nil || u.Scheme != "https" && u.Scheme != "http" {
		return nil, invalid("registry %s names the token server %q, which is no address", s.host, c.params["realm"])
	}
	if err := Reaches(s.host, u.Host); err != nil {
		return nil, err
	}
	if u.Scheme == "http" {
		if !Loopback(u.Host) || !Loopback(s.host) {
			return nil, fmt.Errorf("registry %s names the token server %s: %w", s.host, u.Host, &PlainHTTPError{Host: u.Host})
		}
		u.Scheme = "https" // which on loopback is tried first
	}
	u.Fragment = ""
	return u, nil
}

// hintedError is a refused login whose meaning is said.
type hintedError struct {
	error
	meaning string
}

func (e *hintedError) Error() string { return fmt.Sprintf("%v (%s)", e.error, e.meaning) }
func (e *hintedError) Unwrap() error { return e.error }

// loginHint says once what a refused login means.
func (s *session) loginHint(err error) error {
	var said *hintedError
	if errors.As(err, &said) || !errdefs.IsUnauthorized(err) && !errdefs.IsPermissionDenied(err) {
		return err
	}
	if s.cred.None() {
		return &hintedError{err, "no credentials were given: log in first"}
	}
	return &hintedError{err, "wrong user name, password or token"}
}

// Login finds out whether a registry accepts credentials. Where its token
// server gives a token to use instead of the password, that is returned.
// Errors: errdefs.ErrUnauthenticated.
func (c *Client) Login(ctx context.Context, address string, cred Credentials) (identityToken string, err error) {
	h := HostOf(address)
	s := c.session(h, cred)
	base := &url.URL{Scheme: "https", Host: h, Path: "/v2/"}
	resp, err := s.do(ctx, call{method: http.MethodGet, url: base, accept401: true})
	if err != nil {
		return "", fmt.Errorf("cannot log in to %s: %w", h, err)
	}
	resp.Body.Close()
	s.mu.Lock()
	asked := s.asked
	s.mu.Unlock()
	if resp.StatusCode == http.StatusUnauthorized {
		if _, err := s.challenged(resp, nil, ""); err != nil {
			return "", err
		}
		s.mu.Lock()
		asked = s.asked
		s.mu.Unlock()
		if asked != nil && asked.scheme == "bearer" {
			t, err := s.ask(ctx, asked, nil, true)
			if err != nil {
				return "", fmt.Errorf("cannot log in to %s: %w", h, err)
			}
			s.mu.Lock()
			s.tokens[scopeKey(asked, nil)] = t
			s.mu.Unlock()
			identityToken = t.refresh
		}
	}
	resp, err = s.do(ctx, call{method: http.MethodGet, url: base})
	if err != nil {
		return "", fmt.Errorf("cannot log in to %s: %w", h, s.loginHint(err))
	}
	resp.Body.Close()
	return identityToken, nil
}
