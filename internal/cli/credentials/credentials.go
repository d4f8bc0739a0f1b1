// Package credentials keeps what people log in to registries with, where
// Docker keeps it: in config.json ($DOCKER_CONFIG, else ~/.docker), or in the
// credential helpers that this file names. It owns the reading and the careful
// changing of that file: what it does not know stays, and a crash leaves the
// old file or the new one. It never talks to a registry or to the engine.
package credentials

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/types/registry"
)

// hubKey is the name of Docker Hub in config.json.
const hubKey = "https://index.docker.io/v1/"

// tokenUser is the user name under which helpers keep an identity token.
const tokenUser = "<token>"

// helperTime is how long a credential helper may take: it may ask a person.
const helperTime = 2 * time.Minute

// File is one config.json. It is read anew by each call.
type File struct{ path string }

// Open gives the file of this user. It need not exist.
func Open() (*File, error) {
	dir := os.Getenv("DOCKER_CONFIG")
	if dir == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return nil, fmt.Errorf("cannot find your credentials: %w", err)
		}
		dir = filepath.Join(home, ".docker")
	}
	return &File{filepath.Join(dir, "config.json")}, nil
}

// Path is where the file lies.
func (f *File) Path() string { return f.path }

// Key is the name of a registry in config.json: "docker.io" in its many forms
// is Docker's historic address, others are their host[:port].
func Key(address string) string {
	a := address
	if _, rest, ok := strings.Cut(a, "://"); ok {
		a = rest
	}
	a, _, _ = strings.Cut(a, "/")
	switch a {
	case "", "docker.io", "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com":
		return hubKey
	}
	return a
}

// doc is the part of config.json that is known here.
type doc struct {
	Auths map[string]entry  `json:"auths"`
	Store string            `json:"credsStore"`
	Helps map[string]string `json:"credHelpers"`
}

type entry struct {
	Auth          string `json:"auth,omitempty"`
	Username      string `json:"username,omitempty"`
	Password      string `json:"password,omitempty"`
	IdentityToken string `json:"identitytoken,omitempty"`
	RegistryToken string `json:"registrytoken,omitempty"`
}

func (f *File) read() (d doc, raw map[string]json.RawMessage, err error) {
	raw = map[string]json.RawMessage{}
	b, err := os.ReadFile(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		return d, raw, nil
	}
	if err == nil && len(bytes.TrimSpace(b)) > 0 {
		if err = json.Unmarshal(b, &raw); err == nil {
			err = json.Unmarshal(b, &d)
		}
	}
	if err != nil {
		return d, raw, fmt.Errorf("cannot read %q: %w", f.path, err)
	}
	return d, raw, nil
}

// helper is the credential helper for a registry, "" for the file itself.
func (d *doc) helper(key string) string {
	for k, h := range d.Helps {
		if Key(k) == key {
			return h
		}
	}
	return d.Store
}

// Get gives what is kept for a registry; none is no error.
func (f *File) Get(ctx context.Context, address string) (registry.AuthConfig, error) {
	key := Key(address)
	out := registry.AuthConfig{ServerAddress: key}
	d, _, err := f.read()
	if err != nil {
		return out, err
	}
	if h := d.helper(key); h != "" {
		var got struct{ Username, Secret string }
		b, err := ask(ctx, h, "get", []byte(key))
		if errors.Is(err, errNotFound) {
			return out, nil
		}
		if err == nil {
			err = json.Unmarshal(b, &got)
		}
		if err != nil {
			return out, fmt.Errorf("cannot get the credentials for %s: %w", key, err)
		}
		if got.Username == tokenUser {
			out.IdentityToken = got.Secret
		} else {
			out.Username, out.Password = got.Username, got.Secret
		}
		return out, nil
	}
	for k, e := range d.Auths {
		if Key(k) != key {
			continue
		}
		out.Username, out.Password, out.IdentityToken, out.RegistryToken = e.Username, e.Password, e.IdentityToken, e.RegistryToken
		if e.Auth != "" {
			plain, err := base64.StdEncoding.DecodeString(e.Auth)
			user, password, ok := strings.Cut(strings.TrimRight(string(plain), "\x00"), ":")
			if err != nil || !ok {
				return out, fmt.Errorf("cannot read the credentials for %s in %q: log in again", key, f.path)
			}
			out.Username, out.Password = user, password
		}
		if k == key {
			break // the very name wins over its other forms
		}
	}
	return out, nil
}

// Put keeps credentials. plain tells that they lie in the file as they are,
// not encrypted, because no helper is configured.
func (f *File) Put(ctx context.Context, a registry.AuthConfig) (plain bool, err error) {
	key := Key(a.ServerAddress)
	d, raw, err := f.read()
	if err != nil {
		return false, err
	}
	e := entry{IdentityToken: a.IdentityToken}
	secret, user := a.Password, a.Username
	if a.IdentityToken != "" {
		secret, user = a.IdentityToken, tokenUser
	}
	h := d.helper(key)
	if h != "" {
		in, err := json.Marshal(struct{ ServerURL, Username, Secret string }{key, user, secret})
		if err != nil {
			return false, err
		}
		if _, err := ask(ctx, h, "store", in); err != nil {
			return false, fmt.Errorf("cannot keep the credentials for %s: %w", key, err)
		}
		e = entry{} // the file tells that there are some
	} else {
		password := a.Password
		if a.IdentityToken != "" {
			password = ""
		}
		e.Auth = base64.StdEncoding.EncodeToString([]byte(a.Username + ":" + password))
	}
	return h == "", f.change(raw, func(auths map[string]json.RawMessage) error {
		for k := range auths {
			if Key(k) == key {
				delete(auths, k)
			}
		}
		b, err := json.Marshal(e)
		auths[key] = b
		return err
	})
}

// Erase forgets what is kept for a registry. had tells whether there was something.
func (f *File) Erase(ctx context.Context, address string) (had bool, err error) {
	key := Key(address)
	d, raw, err := f.read()
	if err != nil {
		return false, err
	}
	if h := d.helper(key); h != "" {
		_, gerr := ask(ctx, h, "get", []byte(key))
		if had = gerr == nil; had {
			if _, err := ask(ctx, h, "erase", []byte(key)); err != nil {
				return had, fmt.Errorf("cannot forget the credentials for %s: %w", key, err)
			}
		}
	}
	for k := range d.Auths {
		if Key(k) == key {
			had = true
		}
	}
	if !had {
		return false, nil
	}
	return had, f.change(raw, func(auths map[string]json.RawMessage) error {
		for k := range auths {
			if Key(k) == key {
				delete(auths, k)
			}
		}
		return nil
	})
}

// change writes the file anew with other auths and everything else as it was.
func (f *File) change(raw map[string]json.RawMessage, do func(map[string]json.RawMessage) error) error {
	auths := map[string]json.RawMessage{}
	if b := raw["auths"]; b != nil {
		if err := json.Unmarshal(b, &auths); err != nil {
			return fmt.Errorf("cannot read %q: %w", f.path, err)
		}
	}
	if auths == nil {
		auths = map[string]json.RawMessage{}
	}
	if err := do(auths); err != nil {
		return err
	}
	b, err := json.Marshal(auths)
	if err != nil {
		return err
	}
	raw["auths"] = b
	b, err = json.MarshalIndent(raw, "", "\t")
	if err != nil {
		return err
	}
	if err := f.write(append(b, '\n')); err != nil {
		return fmt.Errorf("cannot write %q: %w", f.path, err)
	}
	return nil
}

// write replaces the file, which nobody else may read. Where it is a link, what
// it leads to is replaced.
func (f *File) write(b []byte) error {
	path := f.path
	if at, err := filepath.EvalSymlinks(path); err == nil {
		path = at
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".config-*.json") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name()) // after the rename it is not there any more
	_, err = tmp.Write(b)
	if err == nil {
		err = tmp.Sync()
	}
	if err = errors.Join(err, tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}

var errNotFound = errors.New("no credentials are kept")

var helperName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)

// ask speaks the protocol of Docker's credential helpers: a verb as argument,
// the rest on standard input and output.
func ask(ctx context.Context, name, verb string, in []byte) ([]byte, error) {
	if !helperName.MatchString(name) {
		return nil, fmt.Errorf("the credential helper %q in your configuration is no name", name)
	}
	prog := "docker-credential-" + name
	ctx, cancel := context.WithTimeout(ctx, helperTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, prog, verb)
	cmd.WaitDelay = time.Second
	cmd.Stdin = bytes.NewReader(in)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err == nil {
		return out, nil
	}
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return nil, fmt.Errorf("the credential helper %s, which your configuration names, cannot be run: %w", prog, err)
	}
	// Helpers say what went wrong on standard output. These are the words of
	// the protocol for what is no failure.
	said := strings.TrimSpace(string(out))
	if slices.Contains([]string{"credentials not found in native keychain", "no credentials server URL", "no credentials username"}, said) {
		return nil, errNotFound
	}
	if said == "" {
		said = strings.TrimSpace(stderr.String())
	}
	return nil, fmt.Errorf("the credential helper %s says: %s", prog, said)
}
