#!/usr/bin/env bash
# Package:   github.com/google/go-containerregistry v0.22.1, pkg/registry (what tests use as a registry)
# Behaviour: GET /v2/NAME/tags/list?n=2 of a repository with three tags answers two of them without a Link header
#            (distribution specification, "Listing Tags": a Link tells that there are more). A client that pages by
#            Link takes the cut list for the whole one. With last= the rest is given, so the tags are there.
# Seen:      n=2: [a b] link ""
#            n=2&last=b: [c] link ""
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
cat >go.mod <<'MOD'
module finding

go 1.26

require github.com/google/go-containerregistry v0.22.1
MOD
cat >main.go <<'GO'
package main

import (
	"encoding/json"
	"fmt"
	"io"
	stdlog "log"
	"net/http"
	"net/http/httptest"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

func main() {
	s := httptest.NewServer(registry.New(registry.Logger(stdlog.New(io.Discard, "", 0))))
	defer s.Close()
	for _, tag := range []string{"a", "b", "c"} {
		ref, err := name.ParseReference(strings.TrimPrefix(s.URL, "http://") + "/repo:" + tag)
		if err == nil {
			err = remote.Write(ref, empty.Image)
		}
		if err != nil {
			stdlog.Fatal(err)
		}
	}
	for _, q := range []string{"n=2", "n=2&last=b"} {
		resp, err := http.Get(s.URL + "/v2/repo/tags/list?" + q)
		if err != nil {
			stdlog.Fatal(err)
		}
		var list struct{ Tags []string }
		if err := json.NewDecoder(resp.Body).Decode(&list); err != nil {
			stdlog.Fatal(err)
		}
		fmt.Printf("%s: %v link %q\n", q, list.Tags, resp.Header.Get("Link"))
	}
}
GO
GOFLAGS=-mod=mod go mod tidy >/dev/null 2>&1
GOFLAGS=-mod=mod go run . >got
cat got
diff - got <<'WANT'
n=2: [a b] link ""
n=2&last=b: [c] link ""
WANT
