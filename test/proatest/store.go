package proatest

import (
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
)

// VerifyStore saves every image that the engine has and reads it without any
// code of the engine's: each blob is there, each layer has its digest. It gives
// the names of the images.
func (e *Engine) VerifyStore() []string {
	e.t.Helper()
	var names []string
	for _, line := range strings.Split(e.MustDocker("images", "-a", "--no-trunc", "--format", "{{.ID}} {{.Repository}}:{{.Tag}}"), "\n") {
		id, name, ok := strings.Cut(line, " ")
		if !ok {
			continue
		}
		file := filepath.Join(e.Dir, "verify.tar")
		e.MustDocker("save", "-o", file, id)
		if s := ReadSaved(e.t, file); len(s.DiffIDs) == 0 {
			e.t.Errorf("image %s (%s) has no layers", name, id)
		}
		if err := os.Remove(file); err != nil {
			e.t.Fatal(err)
		}
		names = append(names, name)
	}
	sort.Strings(names)
	return names
}

// StoreFiles are the files of the image store by name below the data root, as
// far as they hold images: blobs, unfinished blobs, flat layers, indexes,
// extracted trees and snapshots.
func (e *Engine) StoreFiles() []string {
	e.t.Helper()
	var files []string
	root := filepath.Join(e.DataRoot, "image")
	for _, sub := range []string{"content/blobs", "content/ingest", "flat", "index", "owners", "extract", "snapshot"} {
		err := filepath.WalkDir(filepath.Join(root, sub), func(p string, d fs.DirEntry, err error) error {
			if os.IsNotExist(err) {
				return nil
			}
			if err == nil && !d.IsDir() {
				rel, _ := filepath.Rel(e.DataRoot, p)
				files = append(files, rel)
			}
			return err
		})
		if err != nil {
			e.t.Fatal(err)
		}
	}
	sort.Strings(files)
	return files
}
