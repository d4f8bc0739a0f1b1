package versions

import (
	"encoding/json"
	"testing"
)

func TestAnswerOfAVersion(t *testing.T) {
	type object = map[string]any
	for _, c := range []struct {
		name, route string
		version     int
		newest      any
		want        string
	}{
		{"newest as it is", "GET /images/json", 56, []any{object{"Size": 5, "RepoTags": []any{}}}, `[{"RepoTags":[],"Size":5}]`},
		{"no HTML", "GET /version", 56, object{"a": "<&>"}, `{"a":"<&>"}`},
		{"no HTML on the long way", "GET /info", 30, object{"RegistryConfig": nil, "a": "<&>"}, ``},
		{"large numbers", "GET /images/json", 43, []any{object{"Size": 9007199254740993}}, `[{"Containers":-1,"Size":9007199254740993,"VirtualSize":9007199254740993}]`},
		{"A11 container", "GET /events", 51, object{"Type": "container", "Action": "start", "Actor": object{"ID": "x", "Attributes": object{"image": "bb"}}},
			`{"Action":"start","Actor":{"Attributes":{"image":"bb"},"ID":"x"},"Type":"container","from":"bb","id":"x","status":"start"}`},
		{"A11 volume", "GET /events", 51, object{"Type": "volume", "Action": "create", "Actor": object{"ID": "v"}}, `{"Action":"create","Actor":{"ID":"v"},"Type":"volume"}`},
		{"A11 newest", "GET /events", 52, object{"Type": "container", "Action": "start"}, `{"Action":"start","Type":"container"}`},
		{"old value", "GET /containers/{id...}/json", 51, With{object{"Config": object{}}, map[string]any{"MacAddress": "02:42:ac:11:00:0a"}},
			`{"Config":{"MacAddress":"02:42:ac:11:00:0a","OnBuild":null}}`},
		{"old value not shown", "GET /containers/{id...}/json", 56, With{object{"Config": object{}}, map[string]any{"MacAddress": "02:42:ac:11:00:0a"}}, `{"Config":{}}`},
	} {
		b, err := Answer(c.route, c.version, c.newest)
		if err != nil || b[len(b)-1] != '\n' {
			t.Errorf("%s: %q %v", c.name, b, err)
			continue
		}
		if got := string(b[:len(b)-1]); c.want != "" && got != c.want {
			t.Errorf("%s:\n%s\nwant\n%s", c.name, got, c.want)
		}
		if c.name == "no HTML on the long way" {
			var m object
			if json.Unmarshal(b, &m) != nil || m["a"] != "<&>" || m["KernelMemory"] != false {
				t.Errorf("%s: %s", c.name, b)
			}
		}
	}
}

func TestRequestOfAVersion(t *testing.T) {
	for _, c := range []struct {
		name, route string
		version     int
		body, want  string
	}{
		{"D20", "POST /containers/create", 56, `{"Cmd":"date","Entrypoint":"","HostConfig":{"CapAdd":"NET_ADMIN"}}`, `{"Cmd":["date"],"Entrypoint":[""],"HostConfig":{"CapAdd":["NET_ADMIN"]}}`},
		{"D20 another case of letters", "POST /containers/create", 41, `{"cmd":"date"}`, `{"cmd":["date"]}`},
		{"C20 IpcMode", "POST /containers/create", 39, `{"HostConfig":{}}`, `{"HostConfig":{"IpcMode":"shareable"}}`},
		{"C20 IpcMode later", "POST /containers/create", 40, `{"HostConfig":{}}`, `{"HostConfig":{}}`},
		{"C20 PidsLimit", "POST /containers/{id...}/update", 39, `{"PidsLimit":5,"Memory":1}`, `{"Memory":1}`},
		{"C20 PidsLimit later", "POST /containers/{id...}/update", 40, `{"PidsLimit":5}`, `{"PidsLimit":5}`},
		{"no JSON", "POST /containers/create", 41, `{"Cmd":`, `{"Cmd":`},
		{"two documents", "POST /containers/create", 41, `{"Cmd":"x"} {}`, `{"Cmd":"x"} {}`},
	} {
		got := string(Request(c.route, c.version, []byte(c.body)))
		if got != c.want && got != c.want+"\n" {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

// A row that fits no version, or has no source, says nothing.
func TestRowsAreOfUse(t *testing.T) {
	for _, rows := range [][]Row{Answers, Requests} {
		for _, r := range rows {
			if r.Source == "" || r.Until != 0 && (r.Until <= Oldest || r.Until > Newest || r.Since >= r.Until) {
				t.Errorf("row %s %s: %+v", r.Of, r.Path, r)
			}
			if (r.Do == Add || r.Do == Set || r.Do == Fill) && r.Value == "" && r.From == "" {
				t.Errorf("row %s %s has no value", r.Of, r.Path)
			}
		}
	}
}

func BenchmarkNewest(b *testing.B) {
	v := map[string]any{"Id": "x"}
	for b.Loop() {
		if _, err := Answer("GET /containers/json", Newest, v); err != nil {
			b.Fatal(err)
		}
	}
}
