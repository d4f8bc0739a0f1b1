#!/usr/bin/env bash
# Package:   github.com/erofs/go-erofs v0.3.1, Writer.CopyFrom with Merge()
# Behaviour: an opaque marker hides the children of the layers below (image-spec, layer.md "Opaque Whiteout"). Here it
#            also removes the entries of its own layer that were read before it, and names that sort before ".wh." are:
#            a directory that a layer replaces loses its .bashrc and .npmrc and keeps the rest.
# Seen:      without a marker: [.bashrc .npmrc old z]
#            with a marker: [z]
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
cat >go.mod <<'MOD'
module finding

go 1.26

require github.com/erofs/go-erofs v0.3.1
MOD
cat >main.go <<'GO'
package main

import (
	"errors"
	"fmt"
	"io/fs"
	"log"
	"os"
	"testing/fstest"

	"github.com/erofs/go-erofs"
)

func merged(lower, upper fs.FS) (names []string) {
	f, err := os.CreateTemp(".", "image")
	if err != nil {
		log.Fatal(err)
	}
	w := erofs.Create(f)
	if err := errors.Join(w.CopyFrom(lower), w.CopyFrom(upper, erofs.Merge()), w.Close()); err != nil {
		log.Fatal(err)
	}
	img, err := erofs.Open(f)
	if err != nil {
		log.Fatal(err)
	}
	entries, err := fs.ReadDir(img, "d")
	if err != nil {
		log.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func main() {
	lower := fstest.MapFS{"d/old": {Data: []byte("old")}}
	upper := fstest.MapFS{"d/.bashrc": {Data: []byte("1")}, "d/.npmrc": {Data: []byte("2")}, "d/z": {Data: []byte("3")}}
	fmt.Println("without a marker:", merged(lower, upper))
	upper["d/.wh..wh..opq"] = &fstest.MapFile{}
	fmt.Println("with a marker:", merged(lower, upper))
}
GO
GOFLAGS=-mod=mod go mod tidy >/dev/null 2>&1
GOFLAGS=-mod=mod go run . >got
cat got
diff - got <<'WANT'
without a marker: [.bashrc .npmrc old z]
with a marker: [z]
WANT
