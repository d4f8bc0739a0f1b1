package filters

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

// Both encodings, and what is neither (moby daemon/internal/filters, API 1.56).
func TestFaultD17Encodings(t *testing.T) {
	for raw, want := range map[string]string{
		``: "", `{}`: "", `null`: "", `{"name":{"a":true}}`: "a", `{"name":["a","b","a"]}`: "a b", `{"name":{}}`: "", `{"name":null}`: "",
	} {
		a, err := Parse(raw)
		if err != nil || strings.Join(a.Values("name"), " ") != want {
			t.Errorf("%s: %v %v", raw, a, err)
		}
		a.Add("other", "x") // whatever was sent, the set can be added to
	}
	for _, raw := range []string{`[]`, `"x"`, `1`, `{"name":"a"}`, `{"name":[1]}`, `{`, `name=a`} {
		if _, err := Parse(raw); !errdefs.IsInvalidArgument(err) || err.Error() != "invalid filter" {
			t.Errorf("%s: %v", raw, err)
		}
	}
}

// What each list refuses, in Docker's words (moby, API 1.56).
func TestFaultC12Values(t *testing.T) {
	for _, c := range []struct {
		list *List
		raw  string
		want string // "" is good; a beginning is enough
	}{
		{&Containers, `{"nosuch":["a"]}`, "invalid filter 'nosuch'"},
		{&Containers, `{"nosuch":[]}`, "invalid filter 'nosuch'"},
		{&Containers, `{"label!":["a"]}`, "invalid filter 'label!'"},
		{&Containers, `{"Name":["a"]}`, "invalid filter 'Name'"},
		{&Containers, `{"is-task":["maybe"]}`, "invalid filter 'is-task=[maybe]'"},
		{&Containers, `{"is-task":["true","0"]}`, "invalid filter 'is-task=[0 true]'"},
		{&Containers, `{"exited":["a"]}`, `invalid filter 'exited=a': strconv.Atoi: parsing "a": invalid syntax`},
		{&Containers, `{"exited":["-1","137"]}`, ""},
		{&Containers, `{"status":["flying"]}`, "invalid filter 'status=flying': invalid value for state (flying)"},
		{&Containers, `{"status":["removing","dead","created"]}`, ""},
		{&Containers, `{"health":["ill"]}`, "invalid filter 'health=ill': invalid value for health (ill)"},
		{&Containers, `{"health":["none","starting","healthy","unhealthy"]}`, ""},
		{&Containers, `{"publish":["1:2"]}`, "filter for 'publish' should not contain ':': 1:2"},
		{&Containers, `{"expose":["x"]}`, "error while looking up for expose x: "},
		{&Containers, `{"publish":["80","80-90/udp"]}`, ""},
		{&Containers, `{"name":["("]}`, ""},
		{&ContainerPrune, `{"until":["1h","2h"]}`, "more than one until filter specified"},
		{&ContainerPrune, `{"until":[""]}`, "invalid value for 'until' filter: "},
		{&ContainerPrune, `{"name":["a"]}`, "invalid filter 'name'"},
		{&Images, `{"dangling":["invalid"]}`, "invalid filter 'dangling=[invalid]'"},
		{&Images, `{"dangling":["True"]}`, "invalid filter 'dangling=[True]'"},
		{&Images, `{"dangling":[]}`, "invalid filter 'dangling'"},
		{&Images, `{"dangling":["1"],"label!":["a"],"until":["24h","2020-01-02"]}`, ""},
		{&Images, `{"until":["soon"]}`, "invalid value for 'until' filter: "},
		{&Images, `{"name":["a"]}`, "invalid filter 'name'"},
		{&ImagePrune, `{"dangling":["maybe"]}`, "invalid filter 'dangling=[maybe]'"},
		{&ImagePrune, `{"reference":["a"]}`, "invalid filter 'reference'"},
		{&Volumes, `{"dangling":["invalid"]}`, "invalid filter 'dangling=[invalid]'"},
		{&Volumes, `{"label!":["a"]}`, "invalid filter 'label!'"},
		{&VolumePrune, `{"all":["x"]}`, "invalid filter 'all': strconv.ParseBool"},
		{&VolumePrune, `{"all":["1","0"]}`, "invalid filter 'all=[0 1]': only one value is expected"},
		{&VolumePrune, `{"all":["T"],"label!":["a"]}`, ""},
		{&VolumePrune, `{"dangling":["1"]}`, "invalid filter 'dangling'"},
		{&Networks, `{"dangling":["xx"]}`, `invalid value for filter 'dangling': must be "true" (or "1"), or "false" (or "0")`},
		{&Networks, `{"dangling":["1","0"]}`, `got more than one value for filter key "dangling"`},
		{&Networks, `{"type":["mine"]}`, "invalid value for filter 'type': must be 'builtin' or 'custom'"},
		{&Networks, `{"type":["builtin","custom"],"scope":["swarm"],"label":["a=b"]}`, ""},
		{&Networks, `{"until":["1h"]}`, "invalid filter 'until'"},
		{&NetworkPrune, `{"until":["x"]}`, "invalid value for 'until' filter: "},
		{&NetworkPrune, `{"name":["x"]}`, "invalid filter 'name'"},
		{&BuildPrune, `{"id":["a","b"]}`, "filters expect only one value"},
		{&BuildPrune, `{"until":["1h"],"unused-for":["2h"]}`, `conflicting filters: "until" and "unused-for"`},
		{&BuildPrune, `{"unused-for":["x"]}`, `"unused-for" filter expects a duration (e.g., '24h') or a timestamp: `},
		{&BuildPrune, `{"mutable":[]}`, "invalid filter 'mutable'"},
		{&BuildPrune, `{"inuse":[],"label":["a"]}`, ""},
		{&Events, `{"nosuch":["a"]}`, ""}, // moby validates no key of events
		{&Plugins, `{"enabled":["x"]}`, "invalid filter 'enabled=[x]'"},
	} {
		_, err := c.list.Read(c.raw)
		if c.want == "" && err != nil || c.want != "" && (!errdefs.IsInvalidArgument(err) || !strings.HasPrefix(err.Error(), c.want)) {
			t.Errorf("%s by %s: %v, want %q", c.list.What, c.raw, err, c.want)
		}
	}
}

func TestTablesAreSorted(t *testing.T) {
	for _, l := range Lists() {
		if !slices.IsSorted(l.names()) || len(l.names()) == 0 {
			t.Errorf("%s: %v", l.What, l.names())
		}
	}
}

// How values are compared (moby daemon/internal/filters/parse.go, API 1.56).
func TestFaultD17Comparisons(t *testing.T) {
	a := Of(map[string][]string{
		"name": {"^v$", "("}, "label": {"a=1", "b"}, "label!": {"c", "d=2"}, "container": {"web"}, "publish": {"80-81", "53/udp"},
	})
	for what, ok := range map[string]bool{
		"a name by pattern":      a.Pattern("name", "v"),
		"a name that is one":     a.Pattern("name", "("),
		"a beginning":            a.Prefix("container", "web2"),
		"labels":                 a.Labels(map[string]string{"a": "1", "b": "x"}),
		"one label! of two":      a.Labels(map[string]string{"a": "1", "b": "x", "c": "y"}),
		"a port":                 a.Port("publish", 81, "tcp"),
		"a key that is missing":  a.Exact("driver", "local") && a.Pattern("id", "x") && a.Prefix("volume", "y"),
		"not a longer name":      !a.Pattern("name", "v1"),
		"not another value":      !a.Labels(map[string]string{"a": "2", "b": "x"}),
		"not both label!":        !a.Labels(map[string]string{"a": "1", "b": "x", "c": "y", "d": "2"}),
		"not another protocol":   !a.Port("publish", 80, "udp"),
		"not a port beside":      !a.Port("publish", 82, "tcp"),
		"not what begins before": !a.Prefix("container", "we"),
	} {
		if !ok {
			t.Error(what)
		}
	}
}

// References match in familiar and full form (moby daemon/containerd/image_list.go, API 1.56).
func TestFaultD17References(t *testing.T) {
	const d = "@sha256:0123456789012345678901234567890123456789012345678901234567890123"
	for _, c := range []struct {
		pattern, name string
		want          bool
	}{
		{"busybox", "busybox:1", true}, {"busybox:*", "busybox:1", true}, {"busy*", "busybox:1", true}, {"*", "busybox:1", true},
		{"docker.io/library/busybox", "busybox:1", true}, {"docker.io/library/busybox:*", "busybox:1", true}, {"docker.io/library/*:1", "busybox:1", true},
		{"docker.io/utest/docker", "utest/docker:2", true}, {"utest/*", "utest/docker:2", true}, {"*/docker", "utest/docker:2", true},
		{"localhost:5000/*", "localhost:5000/x:1", true}, {"busybox", "busybox" + d, true}, {"docker.io/library/busybox", "busybox" + d, true},
		{"busybox@*", "busybox" + d, true}, {"busybo[x-z]", "busybox:1", true},
		{"busybox:2", "busybox:1", false}, {"docker.io/busybox", "busybox:1", false}, {"*", "utest/docker:2", false}, {"[", "busybox:1", false},
		{"library/busybox", "busybox:1", false},
	} {
		if got := MatchReference([]string{"nosuch", c.pattern}, c.name); got != c.want {
			t.Errorf("%s and %s: %v", c.pattern, c.name, got)
		}
	}
}

// The forms of a time (moby daemon/internal/timestamp, API 1.56).
func TestFaultC17Times(t *testing.T) {
	now := time.Date(2020, 1, 2, 3, 4, 5, 123456789, time.FixedZone("", 3600))
	for in, want := range map[string]string{
		"10m": "2020-01-02T01:54:05.123456789Z", "-1m": "2020-01-02T02:05:05.123456789Z", "1.5h": "2020-01-02T00:34:05.123456789Z",
		"0": "1970-01-01T00:00:00Z", "1136073600": "2006-01-01T00:00:00Z", "1136073600.5": "2006-01-01T00:00:00.5Z",
		"1136073600.0000000019": "2006-01-01T00:00:00.000000001Z",
		"2006-01-02T15:04:05Z":  "2006-01-02T15:04:05Z", "2006-01-02T15:04:05.9+07:00": "2006-01-02T08:04:05.9Z", "2006-01-02T15:04:05": "2006-01-02T14:04:05Z",
		"2006-01-02T15:04Z": "2006-01-02T15:04:00Z", "2006-01-02T15Z": "2006-01-02T15:00:00Z", "2006-01-02T15": "2006-01-02T14:00:00Z",
		"2006-01-02": "2006-01-01T23:00:00Z", "2006-01-02Z": "2006-01-02T00:00:00Z", "2006-01-02-00:01": "2006-01-02T00:01:00Z",
	} {
		got, err := ParseTime(in, now)
		if err != nil || got.UTC().Format(time.RFC3339Nano) != want {
			t.Errorf("%s: %s %v, want %s", in, got.UTC().Format(time.RFC3339Nano), err, want)
		}
	}
	for _, in := range []string{"", " ", "soon", "2006-01-02T", "2006-13-01", "1136073600.x", " 1136073600", "1136073600.000000000000000000001", "2006-01-02T15:04:0Z"} {
		if got, err := ParseTime(in, now); err == nil {
			t.Errorf("%q: %s", in, got)
		}
	}
	for in, want := range map[string]string{
		"10m":                  `invalid timestamp "10m": invalid seconds "10m": invalid syntax`,
		"2006-01-02T15:04:05Z": `invalid timestamp "2006-01-02T15:04:05Z": invalid seconds "2006-01-02T15:04:05Z": invalid syntax`,
		"1.-5":                 `invalid timestamp "1.-5": invalid nanoseconds: invalid character '-' at position 0`,
	} {
		if _, err := ParseUnix(in); err == nil || err.Error() != want {
			t.Errorf("%s: %v, want %s", in, err, want)
		}
	}
}

// A command line's filters are checked before the engine is asked.
func TestFlags(t *testing.T) {
	a, err := Images.Flags([]string{"Reference = b*", "reference=c", "label=k=v"})
	if err != nil || strings.Join(a.Values("reference"), " ") != "b* c" || !a["label"]["k=v"] {
		t.Errorf("%v %v", a, err)
	}
	for arg, want := range map[string]string{
		"dangling":       `bad format of filter "dangling" (expected name=value)`,
		"colour=red":     "invalid filter 'colour': images can be filtered by before, dangling, label, label!, reference, since, until",
		"dangling=maybe": "invalid filter 'dangling=[maybe]'",
	} {
		if _, err := Images.Flags([]string{arg}); err == nil || err.Error() != want {
			t.Errorf("%s: %v", arg, err)
		}
	}
}
