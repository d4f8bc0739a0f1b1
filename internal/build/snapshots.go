package build

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/moby/buildkit/snapshot"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/worker"

	"proa/internal/build/step"
)

// stepSnapshots makes two things of BuildKit's mounts other than BuildKit
// would. The root of a step is handed to the step as what it is made of:
// BuildKit would mount the overlay itself, and a mounted overlay can neither be
// shifted into a user namespace nor given to a machine. And overlays that
// BuildKit does mount, to copy files into them, are volatile: nothing of them
// is worth a sync, since what a killed builder has not committed is gone anyway.
type stepSnapshots struct{ snapshot.Snapshotter }

// Mounts gives the mounts of an active snapshot.
func (s stepSnapshots) Mounts(ctx context.Context, key string) (snapshot.Mountable, error) {
	m, err := s.Snapshotter.Mounts(ctx, key)
	if err != nil {
		return nil, err
	}
	if step.WantsParts(ctx) {
		return partsMount{m}, nil
	}
	return volatileMount{m}, nil
}

// partsMount is a mount that BuildKit does not know as an overlay.
type partsMount struct{ snapshot.Mountable }

func (p partsMount) Mount() ([]mount.Mount, func() error, error) {
	list, release, err := p.Mountable.Mount()
	out := slices.Clone(list)
	for i := range out {
		if out[i].Type == "overlay" {
			out[i].Type = step.PartsType
		}
	}
	return out, release, err
}

// volatileMount is an overlay whose unmounting does not wait for the disk.
type volatileMount struct{ snapshot.Mountable }

func (v volatileMount) Mount() ([]mount.Mount, func() error, error) {
	list, release, err := v.Mountable.Mount()
	if err != nil {
		return nil, nil, err
	}
	out := slices.Clone(list)
	for i, m := range out {
		work := ""
		for _, o := range m.Options {
			if w, ok := strings.CutPrefix(o, "workdir="); ok {
				work = w
			}
		}
		if m.Type != "overlay" || work == "" {
			continue
		}
		// The mark of an earlier volatile mount, a directory with a file in it,
		// which the kernel takes for one of a crash.
		if err := os.RemoveAll(filepath.Join(work, "work", "incompat")); err != nil {
			return nil, nil, errors.Join(fmt.Errorf("cannot mount a snapshot once more: %w", err), release())
		}
		out[i].Options = append(slices.Clone(m.Options), "volatile")
	}
	return out, release, nil
}

// wholeInputs is a RUN step whose inputs are committed before it begins, where
// they are more than one directory: a step can be shown a stack of layers, and
// not a stack with a writable part of another step on top.
type wholeInputs struct{ solver.Op }

func (w wholeInputs) Exec(ctx context.Context, job solver.JobContext, inputs []solver.Result) ([]solver.Result, error) {
	for _, in := range inputs {
		r, ok := in.Sys().(*worker.WorkerRef)
		if !ok || r.ImmutableRef == nil {
			continue
		}
		chain := r.ImmutableRef.LayerChain()
		layers := len(chain)
		if err := chain.Release(context.WithoutCancel(ctx)); err != nil {
			return nil, err
		}
		if layers < 2 {
			continue
		}
		if err := r.ImmutableRef.Finalize(ctx); err != nil {
			return nil, err
		}
	}
	return w.Op.Exec(ctx, job, inputs)
}
