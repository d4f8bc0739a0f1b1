package engine

import (
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

// Where ids of containers lie on the host. Below 0x78000000 are the users of
// /etc/passwd, the subordinate ids that useradd gives out (from 100000), those
// of systemd-nspawn (0x00080000-0x6fffffff) and what sssd makes of the SIDs of a
// domain (200000-2000200000). 0x7ffe0000-0x7ffeffff are systemd's foreign ids.
// Nothing gives out ids from 2^31 on, because some programs read them as
// negative numbers: containers have them only as ids above 65535.
const (
	firstID = 0x78000000
	wideID  = 0x7a000000
	lastID  = 0x7ffe0000
	highID  = 0x80000000
	topID   = 0xffff0000
	endID   = math.MaxUint32 // (uid_t)-1 is no id
)

// The ids of a container's user namespace.
const (
	lowIDs     = 1 << 16           // of every container: its root is the first
	mostIDs    = 1 << 31           // what USER, -u and --group-add can name
	negative16 = endID - 1<<15 + 1 // (uid_t)-32768; the ids from there on are those that old archives hold as negative numbers
	wideParts  = 64                // lines in a file; the kernel takes 340 ranges
)

// zone is a stretch [first, end) of the host's ids.
type zone struct{ first, end uint64 }

// Zones in the order in which they are used.
var (
	lowZones  = []zone{{firstID, lastID}}
	wideZones = []zone{{highID, topID}, {wideID, lastID}}
	topZones  = []zone{{topID, endID}, {firstID, wideID}}
)

// ClaimIDs chooses the map of the user namespaces of this engine's containers,
// and records it in files under owner: as ClaimRange the ids [0, 65536), under
// owner-wide what is free for those from there to width, in one or more ranges,
// and under owner-top those that are negative as 16-bit numbers. The map of an
// engine whose record is narrower is made wider; what it has stays where it is.
// It maps less than width ids where others have recorded the rest.
func ClaimIDs(files []string, owner string, width uint32) (isolation.IDMap, error) {
	if width < lowIDs || width > mostIDs {
		return nil, invalid("cannot use a user namespace of %d ids: use %d to %d", width, lowIDs, uint32(mostIDs))
	}
	s, err := openSubids(files)
	if err != nil {
		return nil, err
	}
	defer s.unlock()
	low, err := s.claimOne(owner, lowIDs, lowZones)
	if err != nil {
		return nil, err
	}
	s.set(owner, []isolation.IDRange{low}) // before the next one looks for a gap
	m := isolation.IDMap{{Host: low.Host, Size: lowIDs}}
	wide := s.claim(owner+"-wide", uint64(width)-lowIDs, wideZones, wideParts)
	at := uint32(lowIDs)
	for _, r := range wide {
		m = append(m, isolation.IDRange{Inside: at, Host: r.Host, Size: r.Size})
		at += r.Size
	}
	s.set(owner+"-wide", wide)
	var top []isolation.IDRange
	if width > lowIDs {
		top = s.claim(owner+"-top", endID-negative16, topZones, 1)
	}
	for _, r := range top {
		m = append(m, isolation.IDRange{Inside: negative16, Host: r.Host, Size: r.Size})
	}
	s.set(owner+"-top", top)
	return m, s.write()
}

// ClaimRange finds width ids of the host that are owner's alone: the range that
// owner has in the first of files, or a new one that meets no range of any of
// them, recorded in all of them. Files are /etc/subuid and /etc/subgid, or
// others with their syntax; a missing one is made.
func ClaimRange(files []string, owner string, width uint32) (isolation.IDRange, error) {
	s, err := openSubids(files)
	if err != nil {
		return isolation.IDRange{}, err
	}
	defer s.unlock()
	r, err := s.claimOne(owner, width, lowZones)
	if err != nil {
		return isolation.IDRange{}, err
	}
	s.set(owner, []isolation.IDRange{r})
	return r, s.write()
}

// ReleaseRange takes the record of an engine's ids out of files again; for
// uninstalling and for tests.
func ReleaseRange(files []string, owner string) error {
	s, err := openSubids(files)
	if err != nil {
		return err
	}
	defer s.unlock()
	for _, name := range []string{owner, owner + "-wide", owner + "-top"} {
		s.set(name, nil)
	}
	return s.write()
}

// subids are the files in which ids of the host are given out, locked against
// other engines.
type subids struct {
	files    []string
	old, now [][]byte // contents; nil: there is none
	unlock   func()
}

func openSubids(files []string) (*subids, error) {
	unlock, err := lockRanges(files)
	if err != nil {
		return nil, err
	}
	s := &subids{files: files, unlock: unlock}
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if err != nil && !os.IsNotExist(err) {
			unlock()
			return nil, fmt.Errorf("cannot choose ids for containers: %w", err)
		}
		s.old = append(s.old, raw)
	}
	s.now = slices.Clone(s.old)
	return s, nil
}

// ranges gives what all others have in any file, and what owner has in the first
// file that has usable lines of it. The ids of the host's own users, which begin
// with root's, are never a container's, whatever a line says.
func (s *subids) ranges(owner string) (taken, mine []isolation.IDRange) {
	owns := make([][]isolation.IDRange, len(s.files))
	for i, raw := range s.now {
		var others []isolation.IDRange
		others, owns[i] = parseRanges(raw, owner)
		taken = append(taken, others...)
	}
	for _, own := range owns {
		for _, r := range own {
			if r.Size > 0 && r.Host >= lowIDs && !meets(r, taken) && !meets(r, mine) {
				mine = append(mine, r)
			}
		}
		if mine != nil {
			break
		}
	}
	return taken, mine
}

// claimOne finds one range of at least width ids.
func (s *subids) claimOne(owner string, width uint32, zones []zone) (isolation.IDRange, error) {
	taken, mine := s.ranges(owner)
	for _, r := range mine {
		if r.Size >= width {
			return isolation.IDRange{Host: r.Host, Size: width}, nil
		}
	}
	for _, r := range freeRanges(taken, zones) {
		if r.Size >= width {
			return isolation.IDRange{Host: r.Host, Size: width}, nil
		}
	}
	return isolation.IDRange{}, fmt.Errorf("cannot choose %d ids for containers: no gap between %d and %d in %s; take unused lines out", width, zones[0].first, zones[0].end, strings.Join(s.files, " and "))
}

// claim finds up to width ids in up to parts ranges: first those that owner has.
func (s *subids) claim(owner string, width uint64, zones []zone, parts int) (out []isolation.IDRange) {
	taken, mine := s.ranges(owner)
	free := append(mine, freeRanges(append(taken, mine...), zones)...)
	for _, r := range free {
		if width == 0 || len(out) == parts {
			break
		}
		r.Size = uint32(min(uint64(r.Size), width))
		width -= uint64(r.Size)
		if n := len(out); n > 0 && uint64(out[n-1].Host)+uint64(out[n-1].Size) == uint64(r.Host) {
			out[n-1].Size += r.Size // the gap behind what it has
			continue
		}
		out = append(out, r)
	}
	return out
}

// set replaces owner's lines by one for each of ranges.
func (s *subids) set(owner string, ranges []isolation.IDRange) {
	for i, old := range s.now {
		if old == nil && ranges == nil {
			continue
		}
		var out bytes.Buffer
		var have []isolation.IDRange
		for line := range strings.Lines(string(old)) {
			if name, r, ok := rangeLine(line); ok && name == owner {
				have = append(have, r)
				continue
			}
			out.WriteString(strings.TrimSuffix(line, "\n") + "\n")
		}
		if slices.Equal(have, ranges) {
			continue // and their place in the file is kept
		}
		for _, r := range ranges {
			fmt.Fprintf(&out, "%s:%d:%d\n", owner, r.Host, r.Size)
		}
		s.now[i] = out.Bytes()
	}
}

// write replaces each file that changed, in one step.
func (s *subids) write() error {
	for i, f := range s.files {
		if bytes.Equal(s.old[i], s.now[i]) {
			continue
		}
		mode := os.FileMode(0o644)
		if fi, err := os.Stat(f); err == nil {
			mode = fi.Mode().Perm()
		}
		if err := sys.ReplaceSynced(f, s.now[i], mode); err != nil {
			return fmt.Errorf("cannot record ids in %q: %w", f, err)
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

// parseRanges reads "name:start:count" lines; other lines belong to no owner.
func parseRanges(raw []byte, owner string) (others, own []isolation.IDRange) {
	for line := range strings.Lines(string(raw)) {
		name, r, ok := rangeLine(line)
		switch {
		case !ok:
		case name == owner:
			own = append(own, r)
		default:
			others = append(others, r)
		}
	}
	return others, own
}

func rangeLine(line string) (name string, r isolation.IDRange, ok bool) {
	parts := strings.Split(strings.TrimSpace(line), ":")
	if len(parts) != 3 || strings.HasPrefix(line, "#") {
		return "", r, false
	}
	h, err1 := strconv.ParseUint(parts[1], 10, 32)
	n, err2 := strconv.ParseUint(parts[2], 10, 32)
	if err1 != nil || err2 != nil || h+n > math.MaxUint32 {
		return "", r, false
	}
	return parts[0], isolation.IDRange{Host: uint32(h), Size: uint32(n)}, true
}

func meets(m isolation.IDRange, taken []isolation.IDRange) bool {
	return slices.ContainsFunc(taken, func(t isolation.IDRange) bool {
		return uint64(m.Host) < uint64(t.Host)+uint64(t.Size) && uint64(t.Host) < uint64(m.Host)+uint64(m.Size)
	})
}

// freeRanges gives the gaps between taken in zones, in their order.
func freeRanges(taken []isolation.IDRange, zones []zone) (free []isolation.IDRange) {
	taken = slices.SortedFunc(slices.Values(taken), func(a, b isolation.IDRange) int { return cmp.Compare(a.Host, b.Host) })
	for _, z := range zones {
		at := z.first
		gap := func(end uint64) {
			if end = min(end, z.end); at < end {
				free = append(free, isolation.IDRange{Host: uint32(at), Size: uint32(end - at)})
			}
		}
		for _, t := range taken {
			gap(uint64(t.Host))
			at = max(at, uint64(t.Host)+uint64(t.Size))
		}
		gap(z.end)
	}
	return free
}
