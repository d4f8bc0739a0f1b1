package build

import (
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/buildkit/client"
)

// pruneOptions reads the query of Docker's POST /build/prune: all, filters
// (until, id, parent, type, description, inuse, shared, private) and bytes.
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
	filters, err := readFilters(q.Get("filters"))
	if err != nil {
		return what, err
	}
	keys := make([]string, 0, len(filters))
	for k := range filters {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		vs := filters[k]
		switch k {
		case "until", "unused-for":
			if len(vs) != 1 || what.KeepDuration != 0 {
				return what, fmt.Errorf("filter until takes one value")
			}
			if what.KeepDuration, err = age(vs[0], now); err != nil {
				return what, err
			}
		case "id", "parent", "type", "description", "inuse", "shared", "private":
			switch {
			case len(vs) == 0:
				what.Filter = append(what.Filter, k)
			case len(vs) > 1:
				return what, fmt.Errorf("filter %s takes one value", k)
			case k == "id":
				what.Filter = append(what.Filter, k+"~="+vs[0])
			default:
				what.Filter = append(what.Filter, k+"=="+vs[0])
			}
		default:
			return what, fmt.Errorf("invalid filter '%s'", k)
		}
	}
	return what, nil
}

// readFilters reads Docker's two encodings: {"k":{"v":true}} and {"k":["v"]}.
func readFilters(raw string) (map[string][]string, error) {
	if raw == "" {
		return nil, nil
	}
	out := map[string][]string{}
	var sets map[string]map[string]bool
	if json.Unmarshal([]byte(raw), &sets) == nil {
		for k, vs := range sets {
			out[k] = []string{}
			for v, on := range vs {
				if on {
					out[k] = append(out[k], v)
				}
			}
		}
		return out, nil
	}
	if err := json.Unmarshal([]byte(raw), &out); err != nil {
		return nil, fmt.Errorf("cannot read filters %q: %w", raw, err)
	}
	return out, nil
}

// age reads how long a record must have been unused: a duration, or the time
// of its last use at the latest.
func age(v string, now time.Time) (time.Duration, error) {
	if d, err := time.ParseDuration(v); err == nil {
		return d, nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, v, time.Local); err == nil {
			return now.Sub(t), nil
		}
	}
	if n, err := strconv.ParseInt(v, 10, 64); err == nil {
		return now.Sub(time.Unix(n, 0)), nil
	}
	return 0, fmt.Errorf("cannot read until %q: must be a duration such as 24h or a time", v)
}
