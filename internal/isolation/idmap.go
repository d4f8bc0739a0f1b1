package isolation

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"syscall"
)

// IDRange maps [Inside, Inside+Size) inside to [Host, Host+Size) outside.
type IDRange struct {
	Inside uint32 `json:"inside"`
	Host   uint32 `json:"host"`
	Size   uint32 `json:"size"`
}

// IDMap is the map of a user namespace. Its ranges do not meet on either side;
// an empty one maps nothing.
type IDMap []IDRange

// Outside is the host's number of an id inside; ok is false where there is none.
func (m IDMap) Outside(id uint32) (host uint32, ok bool) {
	for _, r := range m {
		if n := id - r.Inside; id >= r.Inside && n < r.Size {
			return r.Host + n, true
		}
	}
	return 0, false
}

// Inside is what a process inside sees of an id of the host; ok is false where
// it sees the overflow id.
func (m IDMap) Inside(host uint32) (id uint32, ok bool) {
	for _, r := range m {
		if n := host - r.Host; host >= r.Host && n < r.Size {
			return r.Inside + n, true
		}
	}
	return 0, false
}

// Root is the host's number of id 0 inside.
func (m IDMap) Root() uint32 {
	id, _ := m.Outside(0)
	return id
}

// Has says whether all of ids exist inside.
func (m IDMap) Has(ids ...uint32) bool {
	return !slices.ContainsFunc(ids, func(id uint32) bool {
		_, ok := m.Outside(id)
		return !ok
	})
}

// String gives the ids inside, neighbours as one: "0-2147483647 and 4294934528-4294967294".
func (m IDMap) String() string {
	sorted := slices.SortedFunc(slices.Values(m), func(a, b IDRange) int { return cmp.Compare(a.Inside, b.Inside) })
	var spans [][2]uint32
	for _, r := range sorted {
		last := r.Inside + (r.Size - 1)
		if n := len(spans); n > 0 && spans[n-1][1]+1 == r.Inside {
			spans[n-1][1] = last
			continue
		}
		spans = append(spans, [2]uint32{r.Inside, last})
	}
	var out []string
	for _, s := range spans {
		out = append(out, fmt.Sprintf("%d-%d", s[0], s[1]))
	}
	return strings.Join(out, " and ")
}

// NoID says why a user or group ("user", "group") cannot be had with this map,
// and what to do.
func NoID(what string, id uint32, m IDMap) string {
	return fmt.Sprintf("%s id %d lies outside the ids of the container's user namespace (%s): use --userns host or --runtime vm, or start proad with a larger --userns-size", what, id, m)
}

// Kernel gives the map as clone's caller writes it into uid_map and gid_map.
func (m IDMap) Kernel() []syscall.SysProcIDMap {
	var out []syscall.SysProcIDMap
	for _, r := range m {
		out = append(out, syscall.SysProcIDMap{ContainerID: int(r.Inside), HostID: int(r.Host), Size: int(r.Size)})
	}
	return out
}

// ParseIDMap reads /proc/<pid>/uid_map as a process of the first user namespace
// sees it.
func ParseIDMap(text string) (IDMap, error) {
	var m IDMap
	for line := range strings.Lines(text) {
		var r IDRange
		if _, err := fmt.Sscan(line, &r.Inside, &r.Host, &r.Size); err != nil {
			return nil, fmt.Errorf("cannot read the id map %q: %w", strings.TrimSpace(line), err)
		}
		m = append(m, r)
	}
	return m, nil
}
