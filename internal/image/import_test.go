package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
)

func TestImport(t *testing.T) {
	root := tarOf(t, file{name: "./bin/sh", body: "sh"}, file{name: "./etc/motd", body: "hi"})
	for _, kind := range []compression{plain, gzipped, zstded, xzed} {
		t.Run(string(kind), func(t *testing.T) {
			s := openTest(t)
			ctx := context.Background()
			img, err := s.Import(ctx, bytes.NewReader(pack(t, kind, root)), "example.com/root:1", []string{
				`CMD ["/bin/sh", "-c", "echo hi"]`, `ENTRYPOINT /bin/sh`, "ENV A=1 B=\"two words\"", "EXPOSE 80 53/udp 8000-8002", `LABEL a="b c"`,
				"USER app:grp", `VOLUME ["/data"]`, "WORKDIR /srv", "STOPSIGNAL SIGINT", "HEALTHCHECK --interval=5s --retries=3 CMD curl -f http://localhost/", "ONBUILD RUN make", `SHELL ["/bin/bash", "-c"]`,
			}, "from a test", "")
			if err != nil {
				t.Fatal(err)
			}
			if strings.Join(img.Names, " ") != "example.com/root:1" || img.Comment != "from a test" || img.Config.RootFS.DiffIDs[0] != digest.FromBytes(root) || time.Since(img.Created) > time.Minute || img.Size != 4 {
				t.Errorf("image: %+v", img)
			}
			want := dockerspec.DockerOCIImageConfig{}
			want.Cmd, want.Entrypoint = []string{"/bin/sh", "-c", "echo hi"}, []string{"/bin/sh", "-c", "/bin/sh"}
			want.Env = []string{"A=1", "B=two words"}
			want.ExposedPorts = map[string]struct{}{"80/tcp": {}, "53/udp": {}, "8000/tcp": {}, "8001/tcp": {}, "8002/tcp": {}}
			want.Labels = map[string]string{"a": "b c"}
			want.User, want.WorkingDir, want.StopSignal = "app:grp", "/srv", "SIGINT"
			want.Volumes = map[string]struct{}{"/data": {}}
			want.Healthcheck = &dockerspec.HealthcheckConfig{Test: []string{"CMD-SHELL", "curl -f http://localhost/"}, Interval: 5 * time.Second, Retries: 3}
			want.OnBuild, want.Shell = []string{"RUN make"}, []string{"/bin/bash", "-c"}
			if !reflect.DeepEqual(img.DockerConfig, want) {
				t.Errorf("config:\n%+v\nwant\n%+v", img.DockerConfig, want)
			}
			// What is saved is what was imported.
			o := openTest(t)
			load(t, o, save(t, s, "example.com/root:1"))
			back := get(t, o, "example.com/root:1")
			if back.ID != img.ID || back.Target.Digest != img.Target.Digest {
				t.Error("save and load gave another image")
			}
			m, err := o.Mount(ctx, back.ID.String())
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			if got, err := read(t, m, "/etc/motd"); err != nil || got != "hi" {
				t.Errorf("/etc/motd: %q, %v", got, err)
			}
		})
	}
}

func TestImportErrors(t *testing.T) {
	s := openTest(t)
	root := tarOf(t, file{name: "a", body: strings.Repeat("a", 5000)})
	before := tree(t, s)
	for name, c := range map[string]struct {
		stream            []byte
		ref, change, plat string
		want              string
	}{
		"garbage":        {stream: bytes.Repeat([]byte("garbage "), 1000)},
		"truncated":      {stream: root[:2000], want: "truncated"},
		"truncated gzip": {stream: pack(t, gzipped, root)[:60], want: "truncated"},
		"name":           {stream: root, ref: "UPPER", want: "UPPER"},
		"change":         {stream: root, change: "EXPOSE eighty", want: `change "EXPOSE eighty"`},
		"platform":       {stream: root, plat: "plan9", want: "plan9"},
		"foreign":        {stream: root, plat: "windows/amd64", want: "operating system is not supported"},
	} {
		t.Run(name, func(t *testing.T) {
			var changes []string
			if c.change != "" {
				changes = []string{c.change}
			}
			_, err := s.Import(context.Background(), bytes.NewReader(c.stream), c.ref, changes, "", c.plat)
			var p *PlatformError
			if err == nil || !strings.Contains(err.Error(), c.want) || !errdefs.IsInvalidArgument(err) && !errors.As(err, &p) {
				t.Errorf("error %v, want %q", err, c.want)
			}
			expectTree(t, s, before)
		})
	}
}

func TestChanges(t *testing.T) {
	env := []string{"P=/bin", "EMPTY="}
	for change, want := range map[string]string{
		// ENV, both forms, quotes, escapes, variables.
		`ENV A=1`:                          `{"Env":["P=/bin","EMPTY=","A=1"]}`,
		`env A=1`:                          `{"Env":["P=/bin","EMPTY=","A=1"]}`,
		`ENV P=$P:/x`:                      `{"Env":["P=/bin:/x","EMPTY="]}`,
		`ENV A=${P}x B=${Q:-def}`:          `{"Env":["P=/bin","EMPTY=","A=/binx","B=def"]}`,
		`ENV A=${P:+yes} B=${Q+no}`:        `{"Env":["P=/bin","EMPTY=","A=yes","B="]}`,
		`ENV A=${EMPTY:-x} B=${EMPTY-x}`:   `{"Env":["P=/bin","EMPTY=","A=x","B="]}`,
		`ENV A='$P' B="$P" C=\$P`:          `{"Env":["P=/bin","EMPTY=","A=$P","B=/bin","C=$P"]}`,
		`ENV A="a \"b\" \n" B=a\ b`:        `{"Env":["P=/bin","EMPTY=","A=a \"b\" \\n","B=a b"]}`,
		`ENV A the whole   rest`:           `{"Env":["P=/bin","EMPTY=","A=the whole   rest"]}`,
		`ENV A=a=b`:                        `{"Env":["P=/bin","EMPTY=","A=a=b"]}`,
		`ENV A=`:                           `{"Env":["P=/bin","EMPTY=","A="]}`,
		"ENV A=1 \\\n  B=2\n# no\nENV C=3": `{"Env":["P=/bin","EMPTY=","A=1","B=2","C=3"]}`,
		"ENV\tA=1":                         `{"Env":["P=/bin","EMPTY=","A=1"]}`,
		// Commands.
		`CMD ["a", "b c"]`:      `{"Env":["P=/bin","EMPTY="],"Cmd":["a","b c"]}`,
		`CMD []`:                `{"Env":["P=/bin","EMPTY="]}`,
		`CMD echo "$P"`:         `{"Env":["P=/bin","EMPTY="],"Cmd":["/bin/sh","-c","echo \"$P\""]}`,
		`CMD [ -f x ] && y`:     `{"Env":["P=/bin","EMPTY="],"Cmd":["/bin/sh","-c","[ -f x ] \u0026\u0026 y"]}`,
		`CMD ['a']`:             `{"Env":["P=/bin","EMPTY="],"Cmd":["/bin/sh","-c","['a']"]}`,
		`ENTRYPOINT ["/x"]`:     `{"Env":["P=/bin","EMPTY="],"Entrypoint":["/x"]}`,
		"SHELL [\"/b\"]\nCMD x": `{"Env":["P=/bin","EMPTY="],"Cmd":["/b","x"],"Shell":["/b"]}`,
		`SHELL []`:              "",
		`SHELL /bin/sh`:         "",
		// The rest.
		`EXPOSE 80/TCP`:            `{"ExposedPorts":{"80/tcp":{}},"Env":["P=/bin","EMPTY="]}`,
		`EXPOSE 0`:                 "",
		`EXPOSE 65536`:             "",
		`EXPOSE 9-8`:               "",
		`EXPOSE 80/icmp`:           "",
		`LABEL a=b "c d"="e f"`:    `{"Env":["P=/bin","EMPTY="],"Labels":{"a":"b","c d":"e f"}}`,
		`LABEL a b c`:              `{"Env":["P=/bin","EMPTY="],"Labels":{"a":"b c"}}`,
		`LABEL =b`:                 "",
		`LABEL a=b c`:              "",
		`USER $P`:                  `{"User":"/bin","Env":["P=/bin","EMPTY="]}`,
		`USER a b`:                 "",
		`VOLUME /a "/b c"`:         `{"Env":["P=/bin","EMPTY="],"Volumes":{"/a":{},"/b c":{}}}`,
		`VOLUME ["/a", "/b c"]`:    `{"Env":["P=/bin","EMPTY="],"Volumes":{"/a":{},"/b c":{}}}`,
		`VOLUME [""]`:              "",
		`VOLUME []`:                "",
		`WORKDIR a b`:              `{"Env":["P=/bin","EMPTY="],"WorkingDir":"/a b"}`,
		"WORKDIR /a\nWORKDIR b/..": `{"Env":["P=/bin","EMPTY="],"WorkingDir":"/a"}`,
		`STOPSIGNAL 9`:             `{"Env":["P=/bin","EMPTY="],"StopSignal":"9"}`,
		`STOPSIGNAL rtmin+3`:       `{"Env":["P=/bin","EMPTY="],"StopSignal":"rtmin+3"}`,
		`STOPSIGNAL SIGNOPE`:       "",
		`STOPSIGNAL 65`:            "",
		`HEALTHCHECK none`:         `{"Env":["P=/bin","EMPTY="],"Healthcheck":{"Test":["NONE"]}}`,
		`HEALTHCHECK --timeout=1s --start-period=2s --start-interval=3ms CMD ["a","b"]`: `{"Env":["P=/bin","EMPTY="],"Healthcheck":{"Test":["CMD","a","b"],"Timeout":1000000000,"StartPeriod":2000000000,"StartInterval":3000000}}`,
		`HEALTHCHECK --interval=1us CMD a`:                                              "",
		`HEALTHCHECK --retries=x CMD a`:                                                 "",
		`HEALTHCHECK --interval CMD a`:                                                  "",
		`HEALTHCHECK --colour=red CMD a`:                                                "",
		`HEALTHCHECK CMD`:                                                               "",
		`HEALTHCHECK a`:                                                                 "",
		`ONBUILD RUN  a "b"`:                                                            `{"Env":["P=/bin","EMPTY="],"OnBuild":["RUN  a \"b\""]}`,
		`ONBUILD ONBUILD RUN a`:                                                         "",
		`ONBUILD FROM a`:                                                                "",
		``:                                                                              `{"Env":["P=/bin","EMPTY="]}`,
		`RUN rm -rf /`:                                                                  "",
		`ENV`:                                                                           "",
		`ENV A`:                                                                         "",
		`ENV A="b`:                                                                      "",
		`ENV A=${P`:                                                                     "",
		`ENV A=${P?x}`:                                                                  "",
		`ENV A=${}`:                                                                     "",
	} {
		var c dockerspec.DockerOCIImageConfig
		c.Env = append(c.Env, env...)
		err := applyChanges(&c, []string{change})
		if want == "" {
			if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), strings.Split(change, "\n")[0]) && !strings.Contains(err.Error(), `\"`) {
				t.Errorf("%q: error %v, want one that quotes it", change, err)
			}
			continue
		}
		got, jerr := json.Marshal(c)
		if err != nil || jerr != nil || string(got) != want {
			t.Errorf("%q: %v\ngot  %s\nwant %s", change, err, got, want)
		}
	}
}

func FuzzChanges(f *testing.F) {
	for _, s := range []string{`ENV A="b $C" D='e'`, `HEALTHCHECK --interval=1s CMD a`, "EXPOSE 1-3/udp \\\n 4", `VOLUME ["a"]`, `ENV ${A:-b}`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var c dockerspec.DockerOCIImageConfig
		c.Env = []string{"A=1"}
		if err := applyChanges(&c, []string{s}); err != nil && !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: kind of %v", s, err)
		}
	})
}
