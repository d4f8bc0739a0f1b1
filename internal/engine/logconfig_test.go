package engine

import (
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"
	"github.com/opencontainers/go-digest"
)

// Sizes are read as 20.10.24 reads them (units.FromHumanSize: decimal), and
// what it refuses is refused at create.
func TestFaultD33LogOptions(t *testing.T) {
	type options = map[string]string
	for size, want := range map[string]int64{"1.5m": 1_500_000, "10KiB": 10_000, "10k": 10_000, "4096": 4096, "2g": 2_000_000_000, "1 MB": 1_000_000} {
		l := container.LogConfig{Config: options{"max-size": size}}
		got, err := logFiles(l)
		if err != nil || got.MaxBytes != want || checkLog(l) != nil {
			t.Errorf("max-size %q: %d, %v; want %d", size, got.MaxBytes, err, want)
		}
	}
	for _, o := range []options{
		{"compress": "true"}, {"compress": "0", "max-file": "1"}, {"mode": "blocking"}, {"mode": "non-blocking"}, {"mode": ""},
		{"mode": "non-blocking", "max-buffer-size": "1.5m"}, {"labels": "a,b", "labels-regex": "^x", "env": "A", "env-regex": "(B|C)"},
		{"tag": "{{.Name}}/{{.ID}} {{json .ContainerLabels}}"}, {"tag": ""},
	} {
		if err := checkLog(container.LogConfig{Type: "json-file", Config: o}); err != nil {
			t.Errorf("%v: %v", o, err)
		}
	}
	for want, o := range map[string]options{
		"max-size must be a positive number": {"max-size": "-1"}, "max-size must be a positive": {"max-size": "0"}, "max-size: many": {"max-size": "many"},
		"max-size: -5m": {"max-size": "-5m"}, "max-file cannot be less than 1": {"max-file": "0"}, "max-file: x": {"max-file": "x"},
		"compress cannot be true": {"compress": "true", "max-file": "1"}, "compress: maybe": {"compress": "maybe"},
		"mode not supported: fast": {"mode": "fast"}, "only supported with 'mode=non-blocking'": {"max-buffer-size": "1m"},
		"max-buffer-size:": {"mode": "non-blocking", "max-buffer-size": "x"}, "labels-regex": {"labels-regex": "("}, "env-regex": {"env-regex": "("},
		"for tag": {"tag": "{{.Nosuch}}"}, "value for tag": {"tag": "{{"}, "unknown log opt 'Labels'": {"Labels": "a"},
	} {
		if err := checkLog(container.LogConfig{Config: o}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v; want %q", o, err, want)
		}
	}
	if err := checkLog(container.LogConfig{Type: "none", Config: options{"max-size": "x"}}); err != nil {
		t.Errorf("driver none: %v", err)
	}
}

// The attributes are those of moby's logger.Info.
func TestFaultD33LogAttributes(t *testing.T) {
	r := &record{
		ID: strings.Repeat("ab", 32), Name: "web", ImageID: digest.Digest("sha256:" + strings.Repeat("cd", 32)), ImageRef: "app:1",
		Config: &container.Config{
			Entrypoint: []string{"/e"}, Cmd: []string{"a", "b"}, Env: []string{"A=1", "AB=2", "C", "D="},
			Labels: map[string]string{"l": "x", "team.name": "y", "z": "w"},
		},
		Host: &container.HostConfig{},
	}
	for _, c := range []struct {
		options map[string]string
		want    map[string]string
	}{
		{map[string]string{"max-size": "1m"}, map[string]string{}},
		{map[string]string{"labels": "l,nosuch", "env": "A,C,D"}, map[string]string{"l": "x", "A": "1", "D": ""}},
		{map[string]string{"labels-regex": "^team", "env-regex": "^A"}, map[string]string{"team.name": "y", "A": "1", "AB": "2"}},
		{map[string]string{"tag": "{{.ID}} {{.Name}} {{.ImageName}} {{.ImageID}} {{.Command}} {{.Hostname}}"}, map[string]string{"tag": "abababababab web app:1 cdcdcdcdcdcd /e a b host"}},
		{map[string]string{"tag": "{{.FullID}}{{.ImageFullID}}{{.DaemonName}}{{.ContainerName}}{{.ExtraAttributes}}"}, nil},
		{map[string]string{"tag": `{{upper .Name}} {{truncate .FullID 3}} {{index .ContainerLabels "l"}}`}, map[string]string{"tag": "WEB aba x"}},
	} {
		r.Host.LogConfig.Config = c.options
		l, err := logOf(r, "/log", "host")
		if (err != nil) != (c.want == nil) {
			t.Errorf("%v: %v", c.options, err)
		}
		if len(l.Attrs) != len(c.want) {
			t.Errorf("%v: %v; want %v", c.options, l.Attrs, c.want)
		}
		for k, v := range c.want {
			if l.Attrs[k] != v {
				t.Errorf("%v: %q is %q; want %q", c.options, k, l.Attrs[k], v)
			}
		}
	}
}
