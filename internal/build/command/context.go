package command

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/moby/buildkit/frontend/dockerfile/dfgitutil"
	"github.com/tonistiigi/fsutil"
	"golang.org/x/term"

	"proa/internal/build/tarfs"
	"proa/internal/failure"
)

// source is what a build is made from: file systems that the builder may read,
// and what the frontend has to know of them.
type source struct {
	mounts  map[string]fsutil.FS
	attrs   map[string]string
	key     string
	files   fsutil.FS // the main context; nil where the builder fetches it
	closers []io.Closer
	skipped *sockets
}

func (s *source) close() {
	for _, c := range s.closers {
		_ = c.Close()
	}
}

// warn says what was left out of the context.
func (s *source) warn(w io.Writer) {
	if names := s.skipped.list(); len(names) > 0 {
		more := ""
		if len(names) > 5 {
			more = fmt.Sprintf(" and %d more", len(names)-5)
			names = names[:5]
		}
		fmt.Fprintf(w, "proa: warning: sockets in the context were left out: %s%s\n", strings.Join(names, ", "), more)
	}
}

// openContext opens what the argument of build and --file name: a directory,
// a URL that the builder fetches, or - for an archive or a Dockerfile on
// standard input.
func (a *app) openContext(ctx context.Context, f *buildFlags, where string) (_ *source, err error) {
	s := &source{mounts: map[string]fsutil.FS{}, attrs: map[string]string{}, skipped: &sockets{}}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if err := s.named(f.contexts); err != nil {
		return nil, err
	}
	switch {
	case where == "-":
		return s, s.stdin(ctx, a.in, f)
	case isRemote(where):
		s.attrs["context"] = where
		if f.file == "-" {
			return s, s.dockerfileFrom(a.in)
		}
		if f.file != "" {
			s.attrs["filename"] = f.file
		}
		return s, nil
	}
	st, err := os.Stat(where)
	if err != nil {
		return nil, failure.Hint(fmt.Errorf("cannot use the context %q: %w", where, err), "the last argument is the directory with the files to build from, usually .")
	}
	if !st.IsDir() {
		return nil, failure.Hint(fmt.Errorf("cannot use the context %q: it is not a directory", where), "a Dockerfile is named with -f: proa build -f "+where+" .")
	}
	files, err := fsutil.NewFS(where)
	if err != nil {
		return nil, fmt.Errorf("cannot use the context %q: %w", where, err)
	}
	s.files = walkAhead(ctx, withoutSockets{files, s.skipped})
	s.mounts["context"], s.key = s.files, contextKey(where)
	if f.file == "-" {
		return s, s.dockerfileFrom(a.in)
	}
	file := f.file
	if file == "" {
		file = defaultDockerfile(where)
	}
	st, err = os.Stat(file)
	if err != nil && f.file != "" && !filepath.IsAbs(f.file) {
		// Where people are used to name it inside the context.
		if in, ierr := os.Stat(filepath.Join(where, f.file)); ierr == nil {
			file, st, err = filepath.Join(where, f.file), in, nil
		}
	}
	if err != nil {
		return nil, failure.Hint(fmt.Errorf("cannot read the Dockerfile: %w", err), nearDockerfile(where))
	}
	if st.IsDir() {
		return nil, failure.Hint(fmt.Errorf("cannot read the Dockerfile: %q is a directory", file), "-f names a file")
	}
	dir, err := fsutil.NewFS(filepath.Dir(file))
	if err != nil {
		return nil, fmt.Errorf("cannot read the Dockerfile: %w", err)
	}
	s.mounts["dockerfile"], s.attrs["filename"] = dir, filepath.Base(file)
	return s, nil
}

// defaultDockerfile is the Dockerfile of a directory: by its usual name, or in
// lower case where only that exists (moby/buildkit cmd/buildctl, docker/buildx).
func defaultDockerfile(dir string) string {
	usual := filepath.Join(dir, "Dockerfile")
	if _, err := os.Lstat(usual); errors.Is(err, os.ErrNotExist) {
		if lower := filepath.Join(dir, "dockerfile"); isRegular(lower) {
			return lower
		}
	}
	return usual
}

func isRegular(name string) bool {
	st, err := os.Lstat(name)
	return err == nil && st.Mode().IsRegular()
}

// isRemote tells whether the builder has to fetch a context.
func isRemote(where string) bool {
	if strings.HasPrefix(where, "http://") || strings.HasPrefix(where, "https://") {
		return true
	}
	if _, err := os.Stat(where); err == nil {
		return false
	}
	_, git, _ := dfgitutil.ParseGitRef(where)
	return git
}

// nearDockerfile is the hint for a directory without a Dockerfile.
func nearDockerfile(dir string) string {
	files, _ := os.ReadDir(dir)
	for _, f := range files {
		if n := strings.ToLower(f.Name()); f.Type().IsRegular() && (strings.Contains(n, "dockerfile") || n == "containerfile") && !strings.HasSuffix(n, ".dockerignore") {
			return fmt.Sprintf("there is %s: name it with -f %s", f.Name(), filepath.Join(dir, f.Name()))
		}
	}
	return "-f names a Dockerfile that lies elsewhere"
}

// stdin reads an archive, or a Dockerfile without any files, from in.
func (s *source) stdin(ctx context.Context, in *os.File, f *buildFlags) error {
	if f.file == "-" {
		return failure.Hint(errors.New("context and Dockerfile cannot both come from standard input"), "put the Dockerfile into the archive")
	}
	if term.IsTerminal(int(in.Fd())) {
		return failure.Hint(errors.New("nothing is piped in"), "proa build - < Dockerfile, or tar c . | proa build -")
	}
	r := bufio.NewReaderSize(in, 64<<10)
	head, err := r.Peek(512)
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("cannot read standard input: %w", err)
	}
	if len(head) == 0 {
		return failure.Hint(errors.New("standard input is empty"), "proa build - < Dockerfile, or tar c . | proa build -")
	}
	if !tarfs.IsArchive(head) {
		if err := s.dockerfileFrom(r); err != nil {
			return err
		}
		empty, err := tarfs.Empty("")
		if err != nil {
			return err
		}
		s.files, s.mounts["context"] = empty, empty
		s.closers = append(s.closers, empty)
		return nil
	}
	files, err := tarfs.Read(ctx, r, "")
	if err != nil {
		return err
	}
	s.closers = append(s.closers, files)
	s.files, s.mounts["context"], s.mounts["dockerfile"] = files, files, files
	s.key = files.SharedKey()
	if f.file != "" {
		s.attrs["filename"] = f.file
	}
	return nil
}

// maxDockerfile is more than anybody has written by hand.
const maxDockerfile = 16 << 20

// dockerfileFrom takes the Dockerfile from r.
func (s *source) dockerfileFrom(r io.Reader) error {
	text, err := io.ReadAll(io.LimitReader(r, maxDockerfile+1))
	if err != nil {
		return fmt.Errorf("cannot read the Dockerfile: %w", err)
	}
	if len(text) > maxDockerfile {
		return fmt.Errorf("cannot read the Dockerfile: it has more than %d bytes", maxDockerfile)
	}
	one, err := tarfs.File("Dockerfile", text, "")
	if err != nil {
		return err
	}
	s.closers = append(s.closers, one)
	s.mounts["dockerfile"], s.attrs["filename"] = one, "Dockerfile"
	if s.attrs["context"] != "" {
		s.attrs["dockerfilekey"] = "dockerfile"
	}
	return nil
}

// named opens further contexts.
func (s *source) named(list []string) error {
	for _, v := range list {
		name, to, ok := strings.Cut(v, "=")
		if !ok || name == "" || to == "" {
			return failure.Hint(fmt.Errorf("invalid --build-context %q", v), "--build-context NAME=PATH")
		}
		switch {
		case strings.HasPrefix(to, "docker-image://"), strings.HasPrefix(to, "target:"), isRemote(to):
			s.attrs["context:"+name] = to
		case strings.HasPrefix(to, "oci-layout://"):
			return failure.Hint(fmt.Errorf("invalid --build-context %q: OCI layouts are not supported", v), "load the layout, then NAME=docker-image://IMAGE")
		default:
			st, err := os.Stat(to)
			if err == nil && !st.IsDir() {
				err = errors.New("it is not a directory")
			}
			if err != nil {
				return fmt.Errorf("cannot use the context %q: %w", v, err)
			}
			files, err := fsutil.NewFS(to)
			if err != nil {
				return fmt.Errorf("cannot use the context %q: %w", v, err)
			}
			if name == "context" || name == "dockerfile" {
				return fmt.Errorf("invalid --build-context %q: the name %s is taken", v, name)
			}
			s.mounts[name] = withoutSockets{files, s.skipped}
			s.attrs["context:"+name] = "local:" + name
		}
	}
	return nil
}

// sockets are the ones that were met in the context.
type sockets struct {
	mu   sync.Mutex
	seen []string
}

func (s *sockets) add(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !slices.Contains(s.seen, name) && len(s.seen) < 1000 {
		s.seen = append(s.seen, name)
	}
}

func (s *sockets) list() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.seen)
}

// withoutSockets leaves sockets out: they have no content that could be built in.
type withoutSockets struct {
	fsutil.FS
	skipped *sockets
}

func (w withoutSockets) Walk(ctx context.Context, target string, fn fs.WalkDirFunc) error {
	return w.FS.Walk(ctx, target, func(p string, d fs.DirEntry, err error) error {
		if d != nil && d.Type()&fs.ModeSocket != 0 {
			w.skipped.add(path.Clean(p))
			return nil
		}
		return fn(p, d, err)
	})
}
