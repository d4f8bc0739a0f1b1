// Package volume owns named volumes: directories of the host that outlive the
// containers which use them, their records, and who uses them. It never
// mounts anything and never looks at what a volume holds, except to measure
// it.
//
// A volume is <root>/<name>/_data. It exists exactly when it has a record in
// the engine's database: a directory without one is what a crash left, and is
// removed at the next Open.
package volume

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"

	"proa/internal/event"
	"proa/internal/state"
)

// Driver is the one driver there is.
const Driver = "local"

// AnonymousLabel is Docker's mark of a volume that nobody named. Create sets it
// on volumes that it must name itself.
const AnonymousLabel = "com.docker.volume.anonymous"

// Names as Docker has them: what a person gives, and what a random one is.
var (
	nameRule = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]+$`)
	maxName  = 255 - len(gonePrefix) - 17 // room for the name while it is being removed
)

// gonePrefix begins the names of directories that are being removed; no
// volume's name can begin so.
const gonePrefix = ".gone-"

// record is what is kept of a volume.
type record struct {
	Labels  map[string]string `json:"labels,omitempty"`
	Options map[string]string `json:"options,omitempty"`
	Created time.Time         `json:"created"`
}

var (
	records = state.NewBucket[record]("volume.volumes")
	// holds has the keys "<volume>/<holder>"; a volume's name has no slash.
	holds = state.NewBucket[time.Time]("volume.holds")
)

// Volume is one volume. It is a snapshot.
type Volume struct {
	Name       string
	Driver     string
	Mountpoint string // the directory that a container gets
	Labels     map[string]string
	Options    map[string]string
	Created    time.Time
	Anonymous  bool // made for a container that named none
}

// Store keeps volumes. All methods can be called from many goroutines.
type Store struct {
	// Events gets what happens to volumes; nil discards it.
	Events *event.Ring

	root string
	db   *state.DB

	// making is held while a directory and its record do not agree yet.
	making sync.Mutex
}

// Open opens the store of volumes below root, making it (0700) if there is
// none: what lies there may be setuid and is truly root's (CVE-2021-41091). It
// removes what an engine that was killed had not finished removing.
func Open(root string, db *state.DB) (*Store, error) {
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, fmt.Errorf("cannot make volume store: %w", err)
	}
	s := &Store{root: root, db: db}
	if err := s.sweep(); err != nil {
		return nil, err
	}
	return s, nil
}

func (s *Store) sweep() error {
	entries, err := os.ReadDir(s.root)
	if err != nil {
		return fmt.Errorf("cannot read volume store: %w", err)
	}
	known := map[string]bool{}
	if err := s.db.View(func(tx *bolt.Tx) error {
		return records.ForEach(tx, func(name string, _ record) error { known[name] = true; return nil })
	}); err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		at := filepath.Join(s.root, e.Name())
		switch name, gone := goneName(e.Name()); {
		case gone && known[name]:
			// Killed between the rename and the commit: it was not removed.
			if err := os.Rename(at, s.dir(name)); err != nil {
				errs = append(errs, err)
			}
		case gone:
			errs = append(errs, os.RemoveAll(at))
		case !known[e.Name()]:
			// A directory without a record was made by Create just before the
			// end, and is empty then. Anything else is somebody's data.
			_ = os.Remove(filepath.Join(at, "_data"))
			_ = os.Remove(at)
		}
	}
	for name := range known {
		errs = append(errs, s.makeDir(name))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("cannot tidy volume store: %w", err)
	}
	return nil
}

// asideName is where the directory of a volume goes while it is removed.
func asideName(name string) string {
	var b [8]byte
	_, _ = rand.Read(b[:])
	return gonePrefix + hex.EncodeToString(b[:]) + "-" + name
}

// goneName tells whose directory an entry was, if it was put aside.
func goneName(entry string) (name string, ok bool) {
	rest, ok := strings.CutPrefix(entry, gonePrefix)
	if !ok || len(rest) < 17 {
		return "", ok
	}
	return rest[17:], true
}

func (s *Store) dir(name string) string  { return filepath.Join(s.root, name) }
func (s *Store) data(name string) string { return filepath.Join(s.root, name, "_data") }

func (s *Store) volume(name string, r record) *Volume {
	_, anonymous := r.Labels[AnonymousLabel]
	return &Volume{
		Name: name, Driver: Driver, Mountpoint: s.data(name),
		Labels: maps.Clone(r.Labels), Options: maps.Clone(r.Options), Created: r.Created, Anonymous: anonymous,
	}
}

// Create makes a volume, or returns the one of that name as it is. An empty
// name means an anonymous volume with a random one; an empty driver means
// "local". Errors: errdefs.ErrInvalidArgument for a bad name or an option that
// is not supported, errdefs.ErrNotFound for another driver.
func (s *Store) Create(ctx context.Context, name, driver string, labels, opts map[string]string) (*Volume, error) {
	if driver != "" && driver != Driver {
		return nil, NoDriver(name, driver)
	}
	if err := checkOptions(opts); err != nil {
		return nil, fmt.Errorf("cannot create volume: %w", err)
	}
	rec := record{Labels: maps.Clone(labels), Options: maps.Clone(opts), Created: time.Now().UTC()}
	if name == "" {
		var b [32]byte
		_, _ = rand.Read(b[:])
		name = hex.EncodeToString(b[:])
		if rec.Labels == nil {
			rec.Labels = map[string]string{}
		}
		rec.Labels[AnonymousLabel] = ""
	} else if err := checkName(name); err != nil {
		return nil, err
	}

	s.making.Lock()
	defer s.making.Unlock()
	old, err := s.Get(ctx, name)
	if err == nil || !errdefs.IsNotFound(err) {
		return old, err
	}
	// The directory first: a record promises one.
	if err := s.makeDir(name); err != nil {
		return nil, err
	}
	if err := s.db.Update(func(tx *bolt.Tx) error { return records.Put(tx, name, rec) }); err != nil {
		_ = os.Remove(s.data(name))
		_ = os.Remove(s.dir(name))
		return nil, fmt.Errorf("cannot create volume %q: %w", name, full(err))
	}
	s.Events.Publish(event.VolumeCreate.Of(name, nil, Driver))
	return s.volume(name, rec), nil
}

// NoDriver is the error of a volume whose driver does not exist, with Docker's message.
func NoDriver(name, driver string) error {
	return fmt.Errorf("create %s: error looking up volume plugin %s: plugin \"%s\" not found: %w", name, driver, driver, errdefs.ErrNotFound)
}

func (s *Store) makeDir(name string) error {
	for _, d := range []struct {
		path string
		mode fs.FileMode
	}{{s.dir(name), 0o700}, {s.data(name), 0o755}} {
		if err := os.Mkdir(d.path, d.mode); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("cannot create volume %q: %w", name, full(err))
		}
		// Mkdir heeds the umask of whoever started the engine.
		if err := os.Chmod(d.path, d.mode); err != nil {
			return fmt.Errorf("cannot create volume %q: %w", name, err)
		}
	}
	return nil
}

func full(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: the disk of the data root is full: %w", err, errdefs.ErrResourceExhausted)
	}
	return err
}

func checkName(name string) error {
	if len(name) == 1 {
		return fmt.Errorf("volume name %q is too short, names should be at least two alphanumeric characters: %w", name, errdefs.ErrInvalidArgument)
	}
	if !nameRule.MatchString(name) {
		return fmt.Errorf("volume name %q includes invalid characters, only %q are allowed (a directory of the host is given by its absolute path): %w", name, "[a-zA-Z0-9][a-zA-Z0-9_.-]", errdefs.ErrInvalidArgument)
	}
	if len(name) > maxName {
		return fmt.Errorf("volume name %q is longer than %d characters: %w", name, maxName, errdefs.ErrInvalidArgument)
	}
	return nil
}

// checkOptions refuses what the driver cannot honour, by name. Docker's local
// driver mounts what type, device and o describe; nothing is mounted here.
func checkOptions(opts map[string]string) error {
	for _, k := range slices.Sorted(maps.Keys(opts)) {
		switch k {
		case "type", "device", "o":
			if opts[k] == "" {
				continue
			}
			return fmt.Errorf("option %s=%q is not supported by driver %q: volumes are directories below the data root (use a bind mount for a directory of the host, --tmpfs for memory): %w", k, opts[k], Driver, errdefs.ErrInvalidArgument)
		default:
			return fmt.Errorf("driver %q has no option %q: %w", Driver, k, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// Get finds a volume by its whole name. errdefs.ErrNotFound if there is none.
func (s *Store) Get(ctx context.Context, name string) (*Volume, error) {
	var v *Volume
	err := s.db.View(func(tx *bolt.Tx) error {
		r, err := records.Get(tx, name)
		if errdefs.IsNotFound(err) {
			return noVolume(name)
		}
		if err != nil {
			return err
		}
		v = s.volume(name, r)
		return nil
	})
	return v, err
}

func noVolume(name string) error {
	return fmt.Errorf("%s: no such volume: %w", strings.TrimSpace("get "+name), errdefs.ErrNotFound)
}

// List gives all volumes by name.
func (s *Store) List(ctx context.Context) ([]*Volume, error) {
	var out []*Volume
	err := s.db.View(func(tx *bolt.Tx) error {
		return records.ForEach(tx, func(name string, r record) error {
			out = append(out, s.volume(name, r))
			return nil
		})
	})
	return out, err
}

// Hold makes holder ("container/<id>") use a volume until Release: meanwhile
// it cannot be removed. It writes within tx, so that a record and what it
// holds are one transaction; a nil tx means one of its own. Holding twice
// changes nothing. errdefs.ErrNotFound if there is no such volume.
func (s *Store) Hold(ctx context.Context, tx *bolt.Tx, name, holder string) error {
	if tx == nil {
		return s.db.Update(func(tx *bolt.Tx) error { return s.Hold(ctx, tx, name, holder) })
	}
	if !records.Has(tx, name) {
		return noVolume(name)
	}
	return holds.Put(tx, name+"/"+holder, time.Now().UTC())
}

// Release ends every Hold of holder, within tx or, when tx is nil, on its own.
// A holder that holds nothing is no error.
func (s *Store) Release(ctx context.Context, tx *bolt.Tx, holder string) error {
	if tx == nil {
		return s.db.Update(func(tx *bolt.Tx) error { return s.Release(ctx, tx, holder) })
	}
	var mine []string
	if err := holds.ForEach(tx, func(key string, _ time.Time) error {
		if _, h, _ := strings.Cut(key, "/"); h == holder {
			mine = append(mine, key)
		}
		return nil
	}); err != nil {
		return err
	}
	for _, k := range mine {
		if err := holds.Delete(tx, k); err != nil {
			return err
		}
	}
	return nil
}

// Holders tells for each volume in use who uses it.
func (s *Store) Holders(ctx context.Context) (map[string][]string, error) {
	out := map[string][]string{}
	err := s.db.View(func(tx *bolt.Tx) error {
		return holds.ForEach(tx, func(key string, _ time.Time) error {
			name, h, _ := strings.Cut(key, "/")
			out[name] = append(out[name], h)
			return nil
		})
	})
	return out, err
}

func holdersOf(tx *bolt.Tx, name string) (out []string, err error) {
	err = holds.ForEachPrefix(tx, name+"/", func(key string, _ time.Time) error {
		out = append(out, key[len(name)+1:])
		return nil
	})
	return out, err
}
