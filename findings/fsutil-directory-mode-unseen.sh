#!/usr/bin/env bash
# Package:   github.com/tonistiigi/fsutil v0.0.0-20261103091533-a72de9dcf763 (the transfer of BuildKit's local sources)
# Behaviour: a second transfer in which only the mode of a directory changed writes the new mode to the receiver's
#            disk, but the receiver's NotifyHashed callback hears of no change. A cache that keeps its sums by that
#            callback goes on with the sum of the old mode. A file whose mode changed is reported.
# Seen:      first: [add d add d/f]
#            directory's mode: [] on disk 0700
#            file's mode: [add d/f]
set -euo pipefail
work=$(mktemp -d)
trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT
cd "$work"
cat >go.mod <<'MOD'
module finding

go 1.26

require github.com/tonistiigi/fsutil v0.0.0-20261103091533-a72de9dcf763
MOD
cat >main.go <<'GO'
package main

import (
	"context"
	_ "crypto/sha256"
	"fmt"
	"hash"
	"io"
	"log"
	"os"
	"path/filepath"
	"sync"

	"github.com/opencontainers/go-digest"
	"github.com/tonistiigi/fsutil"
	"github.com/tonistiigi/fsutil/types"
	"golang.org/x/sync/errgroup"
)

// pipe is one end of a Stream in memory.
type pipe struct {
	ctx     context.Context
	in, out chan []byte
}

func (p *pipe) Context() context.Context { return p.ctx }
func (p *pipe) SendMsg(m any) error {
	b, err := m.(*types.Packet).Marshal()
	if err != nil {
		return err
	}
	select {
	case p.out <- append([]byte(nil), b...):
		return nil
	case <-p.ctx.Done():
		return p.ctx.Err()
	}
}
func (p *pipe) RecvMsg(m any) error {
	select {
	case b, ok := <-p.in:
		if !ok {
			return io.EOF
		}
		pk := m.(*types.Packet)
		pk.Reset()
		return pk.Unmarshal(b)
	case <-p.ctx.Done():
		return p.ctx.Err()
	}
}

func transfer(src, dest string) []string {
	eg, ctx := errgroup.WithContext(context.Background())
	a, b := make(chan []byte, 64), make(chan []byte, 64)
	fs, err := fsutil.NewFS(src)
	if err != nil {
		log.Fatal(err)
	}
	var mu sync.Mutex
	heard := []string{}
	eg.Go(func() error {
		defer close(b) // the receiver reads until the end of the stream
		return fsutil.Send(ctx, &pipe{ctx, a, b}, fs, nil)
	})
	eg.Go(func() error {
		return fsutil.Receive(ctx, &pipe{ctx, b, a}, dest, fsutil.ReceiveOpt{
			ContentHasher: func(*types.Stat) (hash.Hash, error) { return digest.Canonical.Hash(), nil },
			NotifyHashed: func(k fsutil.ChangeKind, p string, _ os.FileInfo, err error) error {
				mu.Lock()
				defer mu.Unlock()
				heard = append(heard, k.String()+" "+p)
				return err
			},
		})
	})
	if err := eg.Wait(); err != nil {
		log.Fatal(err)
	}
	return heard
}

func main() {
	src, dest := os.Args[1], os.Args[2]
	must := func(err error) {
		if err != nil {
			log.Fatal(err)
		}
	}
	must(os.MkdirAll(filepath.Join(src, "d"), 0o755))
	must(os.WriteFile(filepath.Join(src, "d/f"), []byte("x"), 0o644))
	must(os.MkdirAll(dest, 0o755))
	fmt.Println("first:", transfer(src, dest))
	must(os.Chmod(filepath.Join(src, "d"), 0o700))
	heard := transfer(src, dest)
	st, err := os.Stat(filepath.Join(dest, "d"))
	must(err)
	fmt.Printf("directory's mode: %v on disk %04o\n", heard, st.Mode().Perm())
	must(os.Chmod(filepath.Join(src, "d/f"), 0o600))
	fmt.Println("file's mode:", transfer(src, dest))
}
GO
GOFLAGS=-mod=mod go mod tidy >/dev/null 2>&1
GOFLAGS=-mod=mod go build -o finding . && timeout 60 ./finding "$work/src" "$work/dest" >got
cat got
diff - got <<'WANT'
first: [add d add d/f]
directory's mode: [] on disk 0700
file's mode: [add d/f]
WANT
