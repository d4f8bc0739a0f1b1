package registry

import (
	"bufio"
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/bcrypt"
)

// Passwords is a htpasswd file with bcrypt hashes, read again when it changes.
//
// A hash costs tens of milliseconds of CPU by design, and clients send the
// password with every request: one that was right is remembered, as an HMAC
// under a key that this process made, until the file changes.
type Passwords struct {
	path string
	log  *slog.Logger
	slow chan struct{} // a token for each hash that is computed: guessing takes half the machine at most
	key  [32]byte

	mu     sync.Mutex
	stamp  stamp
	hashes map[string][]byte
	dummy  []byte              // compared for names that do not exist, which then take as long
	right  map[string][32]byte // user -> HMAC of the password that was right
}

// stamp tells one version of a file from another.
type stamp struct {
	modified time.Time
	size     int64
	info     os.FileInfo
}

func stampOf(fi os.FileInfo) stamp { return stamp{fi.ModTime(), fi.Size(), fi} }

func (s stamp) same(o stamp) bool {
	return s.info != nil && o.info != nil && s.modified.Equal(o.modified) && s.size == o.size && os.SameFile(s.info, o.info)
}

// OpenPasswords reads a htpasswd file. A line whose hash is not bcrypt's is
// an error that names the line and how to make it again.
func OpenPasswords(path string, log *slog.Logger) (*Passwords, error) {
	p := &Passwords{path: path, log: log, slow: make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2))}
	_, _ = rand.Read(p.key[:]) // never fails
	if err := p.read(); err != nil {
		return nil, err
	}
	return p, nil
}

func (p *Passwords) read() error {
	f, err := os.Open(p.path)
	if err != nil {
		return fmt.Errorf("cannot read the passwords: %w", err)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return fmt.Errorf("cannot read the passwords: %w", err)
	}
	hashes, err := parsePasswords(io.LimitReader(f, 16<<20))
	if err != nil {
		return fmt.Errorf("cannot read the passwords in %q: %w", p.path, err)
	}
	dummy, err := dummyFor(hashes)
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stamp, p.hashes, p.dummy, p.right = stampOf(fi), hashes, dummy, map[string][32]byte{}
	return nil
}

// dummyFor gives a hash that costs as much as the dearest of hashes. It is one
// of them, so that it need not be computed; nobody gets in by it.
func dummyFor(hashes map[string][]byte) ([]byte, error) {
	var dearest []byte
	most := 0
	for _, h := range hashes {
		if cost, err := bcrypt.Cost(h); err == nil && cost > most {
			dearest, most = h, cost
		}
	}
	if dearest == nil {
		return bcrypt.GenerateFromPassword([]byte("nobody"), bcryptCost)
	}
	return dearest, nil
}

// parsePasswords reads lines of user:hash; empty ones and those that begin
// with # are skipped.
func parsePasswords(r io.Reader) (map[string][]byte, error) {
	hashes := map[string][]byte{}
	lines := bufio.NewScanner(r)
	for n := 1; lines.Scan(); n++ {
		line := bytes.TrimSpace(lines.Bytes())
		if len(line) == 0 || line[0] == '#' {
			continue
		}
		user, hash, ok := strings.Cut(string(line), ":")
		if !ok || user == "" {
			return nil, fmt.Errorf("line %d is not user:hash", n)
		}
		if _, err := bcrypt.Cost([]byte(hash)); err != nil {
			return nil, fmt.Errorf("line %d: the hash of %q is not bcrypt's, which is the only one taken: make the line with `proa registry htpasswd %s`, or `htpasswd -B`", n, user, user)
		}
		if _, twice := hashes[user]; twice {
			return nil, fmt.Errorf("line %d: %q stands there a second time", n, user)
		}
		hashes[user] = []byte(hash)
	}
	return hashes, lines.Err()
}

// refresh reads the file again if it is another. One that cannot be read is
// said once for each version, and the old one stays in force.
func (p *Passwords) refresh() {
	fi, err := os.Stat(p.path)
	if err == nil {
		p.mu.Lock()
		same := p.stamp.same(stampOf(fi))
		p.mu.Unlock()
		if same {
			return
		}
		if err = p.read(); err == nil {
			p.log.Info("passwords read again", "file", p.path)
			return
		}
		p.mu.Lock()
		p.stamp = stampOf(fi)
		p.mu.Unlock()
	} else {
		p.mu.Lock()
		known := p.stamp.info == nil
		p.stamp = stamp{}
		p.mu.Unlock()
		if known {
			return
		}
	}
	p.log.Warn("the passwords cannot be read again; those of before stay in force", "err", err)
}

// Check says whether this is the user's password. It takes as long for a
// user who does not exist.
func (p *Passwords) Check(ctx context.Context, user, password string) bool {
	if user == "" && password == "" {
		return false
	}
	p.refresh()
	mac := hmac.New(sha256.New, p.key[:])
	fmt.Fprintf(mac, "%d:%s%s", len(user), user, password)
	sum := [32]byte(mac.Sum(nil))
	p.mu.Lock()
	hash, exists := p.hashes[user]
	if !exists {
		hash = p.dummy
	}
	before := p.stamp
	known, right := p.right[user]
	p.mu.Unlock()
	if right && hmac.Equal(known[:], sum[:]) {
		return true
	}
	select {
	case p.slow <- struct{}{}:
		defer func() { <-p.slow }()
	case <-ctx.Done():
		return false
	}
	if err := bcrypt.CompareHashAndPassword(hash, []byte(password)); err != nil || !exists {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stamp.same(before) { // the file may have changed meanwhile
		p.right[user] = sum
	}
	return true
}

// bcryptCost makes a hash take about 50 ms: often enough to log in, too
// seldom to guess.
const bcryptCost = 10

// PasswordLine makes the line of a htpasswd file for a user.
func PasswordLine(user, password string) (string, error) {
	switch {
	case user == "" || strings.ContainsAny(user, ":\n\r") || strings.HasPrefix(user, "#") || strings.TrimSpace(user) != user:
		return "", fmt.Errorf("%q cannot be a user: it must not be empty, begin with #, have a colon or a line end, or begin or end with space", user)
	case password == "":
		return "", errors.New("the password is empty")
	case len(password) > 72:
		return "", fmt.Errorf("the password has %d bytes: bcrypt takes 72 and would ignore the rest", len(password))
	}
	hash, err := bcrypt.GenerateFromPassword([]byte(password), bcryptCost)
	if err != nil {
		return "", err
	}
	return user + ":" + string(hash), nil
}
