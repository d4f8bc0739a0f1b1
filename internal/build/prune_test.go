package build

import (
	"net/url"
	"reflect"
	"testing"
	"time"

	"github.com/moby/buildkit/client"
)

func TestPruneOptions(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, c := range []struct {
		query string
		want  client.PruneInfo
		fails bool
	}{
		{"", client.PruneInfo{}, false},
		{"all=1&keep-storage=5", client.PruneInfo{All: true, ReservedSpace: 5}, false},
		{"keep-storage=5&reserved-space=7&max-used-space=9&min-free-space=3", client.PruneInfo{ReservedSpace: 7, MaxUsedSpace: 9, MinFreeSpace: 3}, false},
		{"filters=" + url.QueryEscape(`{"until":{"24h":true}}`), client.PruneInfo{KeepDuration: 24 * time.Hour}, false},
		{"filters=" + url.QueryEscape(`{"until":["2026-01-01T03:04:05Z"]}`), client.PruneInfo{KeepDuration: 24 * time.Hour}, false},
		{"filters=" + url.QueryEscape(`{"id":["ab"],"type":["regular"],"inuse":{}}`), client.PruneInfo{Filter: []string{"id~=ab", "type==regular"}}, true},
		{"filters=" + url.QueryEscape(`{"id":{"ab":true},"inuse":{}}`), client.PruneInfo{Filter: []string{"id~=ab,inuse"}}, false},
		{"filters=" + url.QueryEscape(`{"id":["ab","cd"]}`), client.PruneInfo{}, true},
		{"filters=" + url.QueryEscape(`{"until":["nonsense"]}`), client.PruneInfo{}, true},
		{"filters=%7B", client.PruneInfo{}, true},
		{"max-used-space=-1", client.PruneInfo{}, true},
	} {
		q, err := url.ParseQuery(c.query)
		if err != nil {
			t.Fatal(err)
		}
		got, err := pruneOptions(q, now)
		if (err != nil) != c.fails {
			t.Errorf("%s: %v", c.query, err)
		}
		if err == nil && !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %+v", c.query, got)
		}
	}
}
