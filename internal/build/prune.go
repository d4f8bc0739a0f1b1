package build

import (
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/moby/buildkit/client"

	"proa/internal/filters"
)

// pruneOptions reads the query of Docker's POST /build/prune: all, filters
// (filters.BuildPrune) and bytes.
func pruneOptions(q url.Values, now time.Time) (client.PruneInfo, error) {
	what := client.PruneInfo{}
	switch strings.ToLower(q.Get("all")) {
	case "", "0", "no", "false", "none":
	default:
		what.All = true
	}
	for name, into := range map[string]*int64{"keep-storage": &what.ReservedSpace, "reserved-space": &what.ReservedSpace, "max-used-space": &what.MaxUsedSpace, "min-free-space": &what.MinFreeSpace} {
		v := q.Get(name)
		if v == "" || name == "keep-storage" && q.Get("reserved-space") != "" {
			continue
		}
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil || n < 0 {
			return what, fmt.Errorf("cannot read %s %q: must be a number of bytes", name, v)
		}
		*into = n
	}
	f, err := filters.BuildPrune.Read(q.Get("filters"))
	if err != nil {
		return what, err
	}
	for _, k := range []string{"until", "unused-for"} {
		if f.Has(k) {
			what.KeepDuration = now.Sub(f.Until(k, now))
		}
	}
	// One string of several conditions: several strings would be alternatives.
	var all []string
	for _, k := range []string{"description", "id", "inuse", "parent", "private", "shared", "type"} {
		switch vs := f.Values(k); {
		case !f.Has(k):
		case len(vs) == 0:
			all = append(all, k)
		case k == "id":
			all = append(all, k+"~="+vs[0])
		default:
			all = append(all, k+"=="+vs[0])
		}
	}
	if len(all) > 0 {
		what.Filter = []string{strings.Join(all, ",")}
	}
	return what, nil
}
