package engine

import (
	"bufio"
	"bytes"
	"cmp"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"proa/internal/isolation"
	"proa/internal/sys"
)

// firstID is where the search for a range begins: behind everything that
// systemd's table of uids gives to somebody (0x00080000-0x6fffffff is
// systemd-nspawn's), far from the 100000 of the first user.
const (
	firstID = 0x70000000
	lastID  = 0x7ffe0000 // systemd's foreign ids begin shortly after
)

// ClaimRange finds the ids that containers of this engine run as on the host:
// the range that owner has in the first of files, or a new one that meets no
// range of any of them, recorded in all of them. Files are /etc/subuid and
// /etc/subgid, or others with their syntax; a missing one is made.
func ClaimRange(files []string, owner string, width uint32) (isolation.IDMap, error) {
	if width < 1 || width > 1<<28 {
		return isolation.IDMap{}, invalid("cannot use a user namespace of %d ids", width)
	}
	unlock, err := lockRanges(files)
	if err != nil {
		return isolation.IDMap{}, err
	}
	defer unlock()
	var taken []isolation.IDMap
	contents := make([][]byte, len(files))
	var mine []isolation.IDMap // per file, Size 0: not there
	for i, f := range files {
		raw, err := os.ReadFile(f)
		if err != nil && !os.IsNotExist(err) {
			return isolation.IDMap{}, fmt.Errorf("cannot choose ids for containers: %w", err)
		}
		contents[i] = raw
		others, own := parseRanges(raw, owner)
		taken = append(taken, others...)
		mine = append(mine, own)
	}
	want := isolation.IDMap{Size: width}
	for _, m := range mine {
		if m.Size >= width && !meets(isolation.IDMap{Host: m.Host, Size: width}, taken) {
			want.Host = m.Host
			break
		}
	}
	if want.Host == 0 {
		host, err := freeRange(taken, width)
		if err != nil {
			return isolation.IDMap{}, err
		}
		want.Host = host
	}
	for i, f := range files {
		if mine[i] == want {
			continue
		}
		if err := rewriteRange(f, contents[i], owner, &want); err != nil {
			return isolation.IDMap{}, err
		}
	}
	return want, nil
}

// ReleaseRange takes the record of an engine's ids out of files again; for
// uninstalling and for tests.
func ReleaseRange(files []string, owner string) error {
	unlock, err := lockRanges(files)
	if err != nil {
		return err
	}
	defer unlock()
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			return fmt.Errorf("cannot release ids: %w", err)
		}
		if err := rewriteRange(f, raw, owner, nil); err != nil {
			return err
		}
	}
	return nil
}

// lockRanges keeps two engines that start at once from choosing the same ids.
func lockRanges(files []string) (unlock func(), err error) {
	if len(files) == 0 {
		return func() {}, nil
	}
	dir, err := os.Open(filepath.Dir(files[0]))
	if err != nil {
		return nil, fmt.Errorf("cannot choose ids for containers: %w", err)
	}
	if err := syscall.Flock(int(dir.Fd()), syscall.LOCK_EX); err != nil {
		dir.Close()
		return nil, fmt.Errorf("cannot choose ids for containers: cannot lock %q: %w", dir.Name(), err)
	}
	return func() { dir.Close() }, nil
}

// parseRanges reads "name:start:count" lines; what is no such line belongs to nobody.
func parseRanges(raw []byte, owner string) (others []isolation.IDMap, own isolation.IDMap) {
	for s := bufio.NewScanner(bytes.NewReader(raw)); s.Scan(); {
		name, host, size, ok := rangeLine(s.Text())
		if !ok {
			continue
		}
		m := isolation.IDMap{Host: host, Size: size}
		if name == owner {
			own = m
		} else {
			others = append(others, m)
		}
	}
	return others, own
}

func rangeLine(line string) (name string, host, size uint32, ok bool) {
	parts := strings.Split(strings.TrimSpace(line), ":")
	if len(parts) != 3 || strings.HasPrefix(line, "#") {
		return "", 0, 0, false
	}
	h, err1 := strconv.ParseUint(parts[1], 10, 32)
	n, err2 := strconv.ParseUint(parts[2], 10, 32)
	if err1 != nil || err2 != nil || h+n > math.MaxUint32 {
		return "", 0, 0, false
	}
	return parts[0], uint32(h), uint32(n), true
}

func meets(m isolation.IDMap, taken []isolation.IDMap) bool {
	return slices.ContainsFunc(taken, func(t isolation.IDMap) bool {
		return uint64(m.Host) < uint64(t.Host)+uint64(t.Size) && uint64(t.Host) < uint64(m.Host)+uint64(m.Size)
	})
}

// freeRange takes the first gap that is wide enough.
func freeRange(taken []isolation.IDMap, width uint32) (uint32, error) {
	taken = slices.Clone(taken)
	slices.SortFunc(taken, func(a, b isolation.IDMap) int { return cmp.Compare(a.Host, b.Host) })
	at := uint64(firstID)
	for _, t := range taken {
		if end := uint64(t.Host) + uint64(t.Size); end > at && uint64(t.Host) < at+uint64(width) {
			at = end
		}
	}
	if at+uint64(width) > lastID {
		return 0, fmt.Errorf("cannot choose %d ids for containers: no gap between %d and %d in /etc/subuid and /etc/subgid; take unused lines out", width, firstID, lastID)
	}
	return uint32(at), nil
}

// rewriteRange replaces owner's line, or drops it when m is nil, in one step.
func rewriteRange(file string, old []byte, owner string, m *isolation.IDMap) error {
	var out bytes.Buffer
	for s := bufio.NewScanner(bytes.NewReader(old)); s.Scan(); {
		if name, _, _, ok := rangeLine(s.Text()); ok && name == owner {
			continue
		}
		out.WriteString(s.Text() + "\n")
	}
	if m != nil {
		fmt.Fprintf(&out, "%s:%d:%d\n", owner, m.Host, m.Size)
	}
	if bytes.Equal(out.Bytes(), old) {
		return nil
	}
	mode := os.FileMode(0o644)
	if fi, err := os.Stat(file); err == nil {
		mode = fi.Mode().Perm()
	}
	if err := sys.ReplaceSynced(file, out.Bytes(), mode); err != nil {
		return fmt.Errorf("cannot record ids in %q: %w", file, err)
	}
	return nil
}
