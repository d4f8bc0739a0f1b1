package filters

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
)

// Value is what the values of a key look like and how they are checked.
type Value struct {
	Name  string
	check func(a Args, key string) error // nil: every value is good
}

// The values that keys have.
var (
	Exact     = Value{Name: "exact"}
	Pattern   = Value{Name: "regular expression, found anywhere"}
	Prefix    = Value{Name: "exact or a beginning"}
	Pair      = Value{Name: "key or key=value"}
	Reference = Value{Name: "image name with *, ?, []: familiar or full, with or without tag"}
	Object    = Value{Name: "name or id of one that exists"} // 404 otherwise
	Bool      = Value{"true, 1, false, 0", func(a Args, key string) error {
		_, err := a.Bool(key, false)
		return err
	}}
	Times    = Value{"duration, RFC 3339 time or Unix time", checkTimes}
	Time     = Value{"one duration, RFC 3339 time or Unix time", checkTime}
	Number   = Value{"whole number", each(checkNumber)}
	State    = Value{"state of a container", each(checkState)}
	Health   = Value{"state of a health check", each(checkHealth)}
	Ports    = Value{"port or range, with or without /protocol", each(checkPorts)}
	Builtin  = Value{"builtin, custom", each(checkBuiltin)}
	Dangling = Value{"one of true, 1, false, 0", checkDangling}
	All      = Value{"one of true, 1, false, 0", checkAll}
	Unused   = Value{"one duration or time, also of the other name", checkUnused}
	One      = Value{"at most one value", checkOne}
)

// Key is one filter of a list.
type Key struct {
	Name  string
	Value Value
	Every bool // all values must hold; otherwise one of them
}

// List is the table of what one list or prune can be filtered by.
type List struct {
	What string
	Keys []Key
	Open bool // unknown keys are ignored
}

// The tables, with the place in moby that each follows.
var (
	// Containers: daemon/list.go. "isolation" is Proa's: Docker ignores it on Linux.
	Containers = List{What: "containers", Keys: []Key{
		{"ancestor", Exact, false}, {"annotation", Pair, true}, {"before", Object, true}, {"exited", Number, false},
		{"expose", Ports, false}, {"health", Health, false}, {"id", Exact, false}, {"is-task", Bool, false},
		{"isolation", Exact, false}, {"label", Pair, true}, {"name", Pattern, false}, {"network", Prefix, false},
		{"publish", Ports, false}, {"since", Object, true}, {"status", State, false}, {"volume", Exact, false},
	}}
	// ContainerPrune: daemon/prune.go.
	ContainerPrune = List{What: "containers to prune", Keys: []Key{{"label", Pair, true}, {"label!", Pair, true}, {"until", Time, false}}}
	// Images: daemon/containerd/image_list.go.
	Images = List{What: "images", Keys: []Key{
		{"before", Object, true}, {"dangling", Bool, false}, {"label", Pair, true}, {"label!", Pair, true},
		{"reference", Reference, false}, {"since", Object, true}, {"until", Times, true},
	}}
	// ImagePrune: daemon/containerd/image_prune.go; one "until", as daemon/images has it.
	ImagePrune = List{What: "images to prune", Keys: []Key{
		{"dangling", Bool, false}, {"label", Pair, true}, {"label!", Pair, true}, {"until", Time, false},
	}}
	// Volumes and VolumePrune: daemon/volume/service.
	Volumes = List{What: "volumes", Keys: []Key{
		{"dangling", Bool, false}, {"driver", Exact, false}, {"label", Pair, true}, {"name", Pattern, false},
	}}
	VolumePrune = List{What: "volumes to prune", Keys: []Key{{"all", All, false}, {"label", Pair, true}, {"label!", Pair, true}}}
	// Networks and NetworkPrune: daemon/network/filter.go.
	Networks = List{What: "networks", Keys: []Key{
		{"dangling", Dangling, false}, {"driver", Exact, false}, {"id", Pattern, false}, {"label", Pair, true},
		{"name", Pattern, false}, {"scope", Exact, false}, {"type", Builtin, false},
	}}
	NetworkPrune = List{What: "networks to prune", Keys: []Key{{"label", Pair, true}, {"label!", Pair, true}, {"until", Time, false}}}
	// BuildPrune: daemon/internal/builder-next/builder.go.
	BuildPrune = List{What: "build cache", Keys: []Key{
		{"description", One, false}, {"id", One, false}, {"inuse", One, false}, {"label", Pair, true}, {"label!", Pair, true},
		{"parent", One, false}, {"private", One, false}, {"shared", One, false}, {"type", One, false},
		{"until", Unused, false}, {"unused-for", Unused, false},
	}}
	// Events: daemon/events/filter.go, which validates nothing.
	Events = List{What: "events", Open: true, Keys: []Key{
		{"config", Prefix, false}, {"container", Prefix, false}, {"daemon", Prefix, false}, {"event", Exact, false},
		{"image", Exact, false}, {"label", Pair, true}, {"network", Prefix, false}, {"node", Prefix, false},
		{"plugin", Prefix, false}, {"scope", Exact, false}, {"secret", Prefix, false}, {"service", Prefix, false},
		{"type", Exact, false}, {"volume", Prefix, false},
	}}
	// Plugins: daemon/pkg/plugin/backend_linux.go.
	Plugins = List{What: "plugins", Keys: []Key{{"capability", Exact, false}, {"enabled", Bool, false}}}
)

// Lists are all tables.
func Lists() []*List {
	return []*List{
		&Containers, &ContainerPrune, &Images, &ImagePrune, &Volumes, &VolumePrune, &Networks, &NetworkPrune, &BuildPrune, &Events, &Plugins,
	}
}

func (l *List) key(name string) *Key {
	for i := range l.Keys {
		if l.Keys[i].Name == name {
			return &l.Keys[i]
		}
	}
	return nil
}

func (l *List) names() []string {
	var out []string
	for _, k := range l.Keys {
		out = append(out, k.Name)
	}
	return out
}

// Check refuses keys that the list does not have, then values that a key
// cannot have.
func (l *List) Check(a Args) error {
	for name := range a {
		if l.key(name) == nil && !l.Open {
			return invalid("invalid filter '%s'", name)
		}
	}
	for _, k := range l.Keys {
		if !a.Has(k.Name) || k.Value.check == nil {
			continue
		}
		if err := k.Value.check(a, k.Name); err != nil {
			return err
		}
	}
	return nil
}

// Read parses the parameter and checks it.
func (l *List) Read(raw string) (Args, error) {
	a, err := Parse(raw)
	if err != nil {
		return nil, err
	}
	return a, l.Check(a)
}

// each checks values one by one.
func each(check func(key, v string) error) func(Args, string) error {
	return func(a Args, key string) error {
		for _, v := range a.Values(key) {
			if err := check(key, v); err != nil {
				return err
			}
		}
		return nil
	}
}

func checkNumber(key, v string) error {
	if _, err := strconv.Atoi(v); err != nil {
		return invalid("invalid filter '%s=%s': %v", key, v, err)
	}
	return nil
}

func checkState(key, v string) error {
	if err := container.ValidateContainerState(container.ContainerState(v)); err != nil {
		return invalid("invalid filter '%s=%s': %v", key, v, err)
	}
	return nil
}

func checkHealth(key, v string) error {
	if err := container.ValidateHealthStatus(container.HealthStatus(v)); err != nil {
		return invalid("invalid filter '%s=%s': %v", key, v, err)
	}
	return nil
}

func checkPorts(key, v string) error {
	if strings.Contains(v, ":") {
		return invalid("filter for '%s' should not contain ':': %s", key, v)
	}
	if _, err := network.ParsePortRange(v); err != nil {
		return invalid("error while looking up for %s %s: %v", key, v, err)
	}
	return nil
}

// Port tells whether a port ("80/tcp") lies in one of the values.
func (a Args) Port(key string, number uint16, proto string) bool {
	for v := range a[key] {
		r, err := network.ParsePortRange(v)
		if err == nil && string(r.Proto()) == proto && number >= r.Start() && number <= r.End() {
			return true
		}
	}
	return false
}

func checkBuiltin(_, v string) error {
	if v != "builtin" && v != "custom" {
		return invalid("invalid value for filter 'type': must be 'builtin' or 'custom'")
	}
	return nil
}

func checkDangling(a Args, key string) error {
	if len(a[key]) > 1 {
		return invalid("got more than one value for filter key %q", key)
	}
	for v := range a[key] {
		if v != "0" && v != "false" && v != "1" && v != "true" {
			return invalid(`invalid value for filter '%s': must be "true" (or "1"), or "false" (or "0")`, key)
		}
	}
	return nil
}

func checkAll(a Args, key string) error {
	_, err := a.All(key)
	return err
}

// All reads the key "all" of a prune: true where it says so.
func (a Args) All(key string) (bool, error) {
	vs := a.Values(key)
	switch len(vs) {
	case 0:
		return false, nil
	case 1:
		b, err := strconv.ParseBool(vs[0])
		if err != nil {
			return false, invalid("invalid filter '%s': %v", key, err)
		}
		return b, nil
	}
	return false, invalid("invalid filter '%s=%s': only one value is expected", key, vs)
}

func checkOne(a Args, key string) error {
	if len(a[key]) > 1 {
		return invalid("filters expect only one value")
	}
	return nil
}

func checkTimes(a Args, key string) error {
	for _, v := range a.Values(key) {
		if _, err := ParseTime(v, time.Now()); err != nil {
			return invalid("invalid value for '%s' filter: %v", key, err)
		}
	}
	return nil
}

func checkTime(a Args, key string) error {
	if len(a[key]) > 1 {
		return invalid("more than one %s filter specified", key)
	}
	return checkTimes(a, key)
}

func checkUnused(a Args, key string) error {
	if len(a["until"]) > 0 && len(a["unused-for"]) > 0 {
		return invalid(`conflicting filters: "until" and "unused-for"`)
	}
	if err := checkOne(a, key); err != nil {
		return err
	}
	for v := range a[key] {
		if _, err := ParseTime(v, time.Now()); err != nil {
			return invalid("%q filter expects a duration (e.g., '24h') or a timestamp: %v", key, err)
		}
	}
	return nil
}

// Until is the earliest time that a key says, before which an object must have
// been made; zero for none. The values have been checked.
func (a Args) Until(key string, now time.Time) time.Time {
	var first time.Time
	for v := range a[key] {
		if t, err := ParseTime(v, now); err == nil && (first.IsZero() || t.Before(first)) {
			first = t
		}
	}
	return first
}

// The forms of a time besides a duration and a number of seconds. Go reads a
// fraction of a second where a form has seconds.
var (
	zoned = []string{"2006-01-02T15:04:05Z07:00", "2006-01-02T15:04Z07:00", "2006-01-02T15Z07:00", "2006-01-02Z07:00"}
	local = []string{"2006-01-02T15:04:05", "2006-01-02T15:04", "2006-01-02T15", "2006-01-02"}
)

// ParseTime reads a duration before now, a time of RFC 3339 that may be cut
// short and may lack a zone (now's), or seconds since 1970 with a fraction.
func ParseTime(v string, now time.Time) (time.Time, error) {
	if strings.TrimSpace(v) == "" {
		return time.Time{}, fmt.Errorf("failed to parse value as time or duration: value is empty")
	}
	if d, err := time.ParseDuration(v); err == nil && v != "0" {
		return now.Add(-d), nil
	}
	var first error
	for _, form := range zoned {
		t, err := time.Parse(form, v)
		if err == nil {
			return t, nil
		}
		if first == nil {
			first = err
		}
	}
	for _, form := range local {
		if t, err := time.ParseInLocation(form, v, now.Location()); err == nil {
			return t, nil
		}
	}
	if strings.Contains(v, "-") {
		return time.Time{}, first
	}
	t, err := parseUnix(v)
	if err != nil {
		return time.Time{}, fmt.Errorf("failed to parse value as time or duration: %w", err)
	}
	return t, nil
}

// ParseUnix reads seconds since 1970 with an optional fraction of up to 20
// digits, of which nanoseconds count; "" is the zero time.
func ParseUnix(v string) (time.Time, error) {
	if v == "" {
		return time.Time{}, nil
	}
	t, err := parseUnix(v)
	if err != nil {
		return time.Time{}, fmt.Errorf("invalid timestamp %q: %w", v, err)
	}
	return t, nil
}

func parseUnix(v string) (time.Time, error) {
	s, frac, _ := strings.Cut(v, ".")
	sec, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		reason := strconv.ErrSyntax
		if ne, ok := err.(*strconv.NumError); ok {
			reason = ne.Err
		}
		return time.Time{}, fmt.Errorf("invalid seconds %q: %w", s, reason)
	}
	const most = 20
	if len(frac) > most {
		return time.Time{}, fmt.Errorf("invalid nanoseconds: length %d exceeds maximum %d", len(frac), most)
	}
	if i := strings.IndexFunc(frac, func(r rune) bool { return r < '0' || r > '9' }); i >= 0 {
		return time.Time{}, fmt.Errorf("invalid nanoseconds: invalid character %q at position %d", frac[i], i)
	}
	nsec, err := strconv.ParseInt((frac + "000000000")[:9], 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("invalid nanoseconds %q: %w", frac, err)
	}
	return time.Unix(sec, nsec), nil
}
