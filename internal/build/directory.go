package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
	"unicode"

	"github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/cache/contenthash"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/filesync"
	"github.com/moby/buildkit/snapshot"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/source"
	"github.com/moby/buildkit/source/local"
	"github.com/moby/buildkit/util/bklog"
	"github.com/moby/buildkit/util/progress"
	"github.com/moby/patternmatcher"
	"github.com/opencontainers/go-digest"
	"github.com/tonistiigi/fsutil"
	"github.com/tonistiigi/fsutil/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"proa/internal/build/tarfs"
	"proa/internal/build/unchanged"
)

// Keys of a cache record's metadata.
const (
	// directoryKey is the name under which BuildKit's own source finds the
	// record that a directory was transferred to last: it stays valid.
	directoryKey = "local.sharedKey"
	// exactKey is set where each file of a finished transfer had a time that
	// tells its content: see exactTime.
	exactKey = "proa.exact-times"
	// filesKey is the sum of what a finished transfer brought. It is at the record that nobody can write to: BuildKit removes
	// that, and this with it, before files are changed below it.
	filesKey = "proa.files"
)

// directories are the directories of clients. Unlike BuildKit's source, whose
// identifiers and keys it uses, it asks a client first whether a directory is
// as it was: comparing a thousand files one by one was a third of a build that
// has nothing to do.
type directories struct {
	source.Source
	records cache.Accessor
}

func newDirectories(records cache.Accessor) (*directories, error) {
	s, err := local.NewSource(local.Opt{CacheAccessor: records})
	if err != nil {
		return nil, fmt.Errorf("cannot open the builder's source of directories: %w", err)
	}
	return &directories{s, records}, nil
}

// Resolve gives one directory.
func (d *directories) Resolve(ctx context.Context, id source.Identifier, sm *session.Manager, v solver.Vertex) (source.SourceInstance, error) {
	inst, err := d.Source.Resolve(ctx, id, sm, v)
	if err != nil {
		return nil, err
	}
	return &directory{inst, id.(*local.LocalIdentifier), sm, d.records}, nil // BuildKit's refuses others
}

type directory struct {
	source.SourceInstance
	id       *local.LocalIdentifier
	sessions *session.Manager
	records  cache.Accessor
}

// sessionWait is how long a session that was named may take to arrive.
const sessionWait = 5 * time.Second

// Snapshot gives the directory's files: those of the session that was named,
// or of any of the build's.
func (d *directory) Snapshot(ctx context.Context, job solver.JobContext) (ref cache.ImmutableRef, err error) {
	if d.id.SessionID != "" {
		wait, cancel := context.WithTimeout(ctx, sessionWait)
		c, err := d.sessions.Get(wait, d.id.SessionID, false)
		cancel()
		if err == nil {
			return d.fetch(ctx, c)
		}
	}
	err = d.sessions.Any(ctx, job.Session(), func(ctx context.Context, _ string, c session.Caller) error {
		ref, err = d.fetch(ctx, c)
		return err
	})
	return ref, err
}

// fetch gives the files of one client.
func (d *directory) fetch(ctx context.Context, c session.Caller) (cache.ImmutableRef, error) {
	if !c.Supports(session.MethodURL(filesync.FileSync_ServiceDesc.ServiceName, "diffcopy")) {
		return nil, errors.New("the client offers no directories")
	}
	ctx, cancel := context.WithCancel(c.Context(ctx))
	defer cancel()
	key := d.id.Name + ":" + d.id.SharedKeyHint + ":" + c.SharedKey()
	if d.id.MetadataOnly {
		key += ":metadata"
	}
	request := fileFilters(d.id)
	index := filesIndex(key, request, d.id)
	said := newMoving(ctx, d.id.Name)
	for ask := true; ; ask = false {
		var question unchanged.Question
		if ask {
			question = unchanged.Ask(d.have(ctx, index))
		}
		question.Put(request)
		stream, err := filesync.NewFileSyncClient(c.Conn()).DiffCopy(metadata.NewOutgoingContext(ctx, request))
		if err != nil {
			return nil, err
		}
		if question.Asks() {
			header, err := stream.Header()
			if err != nil {
				return nil, err
			}
			if sum := question.Answered(header); sum != "" {
				ref, err := d.asItWas(ctx, stream, index+sum)
				if err != nil {
					return nil, err
				}
				if ref != nil {
					said.moved(0, true)
					return ref, nil
				}
				continue // it was removed meanwhile: once more, for the files
			}
		}
		return d.transfer(ctx, &heard{FileSync_DiffCopyClient: stream, sealed: d.isArchive(c)}, key, index, said)
	}
}

// isArchive reports whether the files are those of an archive, whose key tells
// their content. Named contexts of the same session are directories.
func (d *directory) isArchive(c session.Caller) bool {
	return strings.HasPrefix(c.SharedKey(), tarfs.KeyPrefix) && (d.id.Name == "context" || d.id.Name == "dockerfile")
}

// have are the sums of states of the directory that are in the cache.
func (d *directory) have(ctx context.Context, index string) (sums []string) {
	if d.id.Differ != fsutil.DiffMetadata {
		return nil
	}
	found, err := d.records.Search(ctx, index, true)
	if err != nil {
		return nil
	}
	for _, r := range found {
		if sum := r.GetString(filesKey); sum != "" && !slices.Contains(sums, sum) {
			sums = append(sums, sum)
		}
	}
	return sums
}

// asItWas ends a transfer that is not needed and gives the files that are
// there, or nothing if they are not there any more.
func (d *directory) asItWas(ctx context.Context, stream filesync.FileSync_DiffCopyClient, index string) (cache.ImmutableRef, error) {
	if err := finish(stream); err != nil {
		return nil, err
	}
	found, err := d.records.Search(ctx, index, false)
	if err != nil {
		return nil, err
	}
	for _, r := range found {
		if ref, err := d.records.Get(ctx, r.ID(), nil); err == nil {
			return ref, nil
		}
	}
	return nil, nil
}

// finish says that no files are wanted.
func finish(stream filesync.FileSync_DiffCopyClient) error {
	if err := stream.SendMsg(&types.Packet{Type: types.PACKET_FIN}); err != nil {
		return err
	}
	return drain(stream)
}

// drain reads to the end of a stream, which says whether the client is content.
func drain(stream grpc.ClientStream) error {
	_ = stream.CloseSend() // never fails
	for {
		var p types.Packet
		switch err := stream.RecvMsg(&p); {
		case err == nil:
		case errors.Is(err, io.EOF):
			return nil
		default:
			return err
		}
	}
}

// transfer brings the files: those that differ from what the client's directory
// was like last time.
func (d *directory) transfer(ctx context.Context, heard *heard, key, index string, said *moving) (_ cache.ImmutableRef, err error) {
	into, err := d.last(ctx, key)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err == nil {
			return
		}
		// Nobody knows how far it came.
		if err := into.SetCachePolicyDefault(); err != nil {
			bklog.G(ctx).Errorf("cannot give up what a transfer left half done: %v", err)
		}
		contenthash.ClearCacheContext(into)
		go into.Release(context.WithoutCancel(ctx))
	}()
	// A builder that is killed now leaves files that are newer than their
	// checksums: nobody shall find them.
	if err := into.ClearValueAndIndex(directoryKey, directoryKey+":"); err != nil {
		return nil, err
	}
	was, now := into.GetString(exactKey), ""
	sums, err := d.receive(ctx, heard, into, heard.sealed || was != "", said)
	if err != nil {
		return nil, err
	}
	if err := drain(heard); err != nil {
		return nil, err
	}
	if err := contenthash.SetCacheContext(ctx, into, sums); err != nil {
		return nil, err
	}
	if !heard.inexact {
		now = "1"
	}
	if now != was { // a transfer that fails leaves a record that is not found again
		if err := into.SetString(exactKey, now, ""); err != nil {
			return nil, err
		}
	}
	if err := into.SetString(directoryKey, key, directoryKey+":"+key); err != nil {
		return nil, err
	}
	ref, err := into.Commit(ctx)
	if err != nil {
		return nil, err
	}
	if heard.whole() && !heard.inexact && d.id.Differ == fsutil.DiffMetadata {
		sum := heard.sum.String()
		if err := ref.SetString(filesKey, sum, index+sum); err != nil {
			bklog.G(ctx).Warnf("the next build will compare every file: %v", err)
		}
	}
	return ref, nil
}

// last is what the directory was transferred to before, or something new.
func (d *directory) last(ctx context.Context, key string) (cache.MutableRef, error) {
	found, err := d.records.Search(ctx, directoryKey+":"+key, false)
	if err != nil {
		return nil, err
	}
	for _, r := range found {
		// It may be in use: then another one, or a new one.
		if m, err := d.records.GetMutable(ctx, r.ID()); err == nil {
			return m, nil
		}
	}
	return d.records.New(ctx, nil, nil, cache.CachePolicyRetain, cache.WithRecordType(client.UsageRecordTypeLocalSource), cache.WithDescription("local source for "+d.id.Name))
}

// receive writes the files and gives their checksums. Where exact is false, the
// files that are there include some whose times do not tell their content.
func (d *directory) receive(ctx context.Context, stream *heard, into cache.MutableRef, exact bool, said *moving) (_ contenthash.CacheContext, err error) {
	mount, err := into.Mount(ctx, false, nil)
	if err != nil {
		return nil, err
	}
	mounter := snapshot.LocalMounter(mount)
	dir, err := mounter.Mount()
	if err != nil {
		return nil, err
	}
	defer func() {
		if e := mounter.Unmount(); err == nil {
			err = e
		}
	}()
	sums, err := contenthash.GetCacheContext(ctx, into)
	if err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	if !exact && d.id.Differ == fsutil.DiffMetadata {
		if err := forgetInexact(ctx, root); err != nil {
			return nil, fmt.Errorf("cannot prepare the directory of the context: %w", err)
		}
	}
	opt := fsutil.ReceiveOpt{
		NotifyHashed:  sums.HandleChange,
		ContentHasher: contenthash.NewFromStat,
		ProgressCb:    said.moved,
		Differ:        d.id.Differ,
	}
	if d.id.MetadataOnly {
		content, err := patternmatcher.New(d.id.MetadataExceptions)
		if err != nil {
			return nil, err
		}
		opt.MetadataOnly = func(p string, _ *types.Stat) bool {
			ok, err := content.MatchesOrParentMatches(p)
			return err == nil && ok
		}
	} else {
		stream.told = func(st *types.Stat) error { return directoryChanged(root, sums, st) }
	}
	if err := fsutil.Receive(ctx, stream, dir, opt); err != nil {
		return nil, err
	}
	return sums, nil
}

// exactTime reports whether a file's modification time, in ns, tells its
// content together with its size. A kernel sets times in ns; a time in whole
// milliseconds comes from an archive, a tool that resets times (SOURCE_DATE_EPOCH,
// touch -d, rsync, a cache of a CI) or a file system of coarse times, and files of
// the same size then share it whatever they hold.
func exactTime(ns int64) bool { return ns%int64(time.Millisecond) != 0 }

// forgetInexact changes the time of each file whose time does not tell its
// content, so that the comparison by metadata asks the client for it. The
// transfer sets the client's time again.
func forgetInexact(ctx context.Context, root *os.Root) error {
	// Not by fs.WalkDir over its FS, which has no names that are not UTF-8.
	return filepath.WalkDir(root.Name(), func(p string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return errors.Join(err, ctx.Err())
		}
		st, err := e.Info()
		if err != nil {
			return err
		}
		at := st.ModTime()
		if exactTime(at.UnixNano()) {
			return nil
		}
		name, err := filepath.Rel(root.Name(), p)
		if err != nil {
			return err
		}
		return root.Chtimes(name, at, at.Add(time.Nanosecond))
	})
}

// heard is a stream that adds up what a client tells of files, and sees whether
// those that it sends are as long as it said: a file that cannot be read is sent
// as an empty one by fsutil, and must not be taken for the real one for ever.
type heard struct {
	filesync.FileSync_DiffCopyClient
	told    func(*types.Stat) error // nil, or asked about each file before anybody acts on it
	sum     unchanged.Sum
	left    []int64 // bytes of each file that have not come
	ended   bool    // the walk came to its end
	short   bool    // a file had other than its bytes
	sealed  bool    // the key of the files tells their content
	inexact bool    // the time of a file does not tell its content, and nothing else does
}

// whole reports whether all that was told of came as it was told.
func (h *heard) whole() bool { return h.ended && !h.short }

// RecvMsg receives one packet.
func (h *heard) RecvMsg(m any) error {
	if err := h.FileSync_DiffCopyClient.RecvMsg(m); err != nil {
		return err
	}
	switch p, ok := m.(*types.Packet); {
	case !ok:
	case p.Type == types.PACKET_STAT && p.Stat == nil:
		h.ended = true
	case p.Type == types.PACKET_STAT:
		h.left = append(h.left, p.Stat.Size)
		if !h.sealed && os.FileMode(p.Stat.Mode).IsRegular() && p.Stat.Size > 0 && !exactTime(p.Stat.ModTime) {
			h.inexact = true
		}
		if err := h.sum.Add(p.Stat); err != nil {
			return err
		}
		if h.told != nil {
			return h.told(p.Stat)
		}
	case p.Type == types.PACKET_DATA && int64(p.ID) < int64(len(h.left)):
		if h.left[p.ID] -= int64(len(p.Data)); len(p.Data) == 0 && h.left[p.ID] != 0 {
			h.short = true
		}
	}
	return nil
}

// directoryChanged tells of a directory whose mode or owner changes. fsutil
// changes it and says nothing, so that a COPY of it would be taken from the
// cache (v0.0.0-20261103: DiskWriter.HandleChange).
func directoryChanged(root *os.Root, sums contenthash.CacheContext, st *types.Stat) error {
	if !st.IsDir() || !filepath.IsLocal(st.Path) {
		return nil
	}
	have, err := root.Lstat(st.Path)
	if err != nil || !have.IsDir() {
		return nil //nolint:nilerr // it is new, and then fsutil tells of it
	}
	sys := have.Sys().(*syscall.Stat_t)
	if uint32(have.Mode()) == st.Mode && sys.Uid == st.Uid && sys.Gid == st.Gid {
		return nil
	}
	st = st.Clone()
	h, err := contenthash.NewFromStat(st)
	if err != nil {
		return err
	}
	return sums.HandleChange(fsutil.ChangeKindModify, st.Path, hashedDirectory{&fsutil.StatInfo{Stat: st}, digest.NewDigest(digest.SHA256, h)}, nil)
}

// hashedDirectory is a directory as contenthash wants to be told of it.
type hashedDirectory struct {
	*fsutil.StatInfo
	digest digest.Digest
}

// Digest is the checksum of what its stat says.
func (h hashedDirectory) Digest() digest.Digest { return h.digest }

// filesIndex begins the index of the sums of a directory as filtered.
func filesIndex(key string, filters metadata.MD, id *local.LocalIdentifier) string {
	h := digest.Canonical.Digester()
	fmt.Fprintf(h.Hash(), "%q %q %q", key, filters, id.MetadataExceptions) // fmt sorts the keys of maps
	return filesKey + ":" + h.Digest().Encoded() + ":"
}

// fileFilters says to a client which files are wanted, in BuildKit's words: with
// something that is not ASCII in it, a list is escaped as in a URL's query.
func fileFilters(id *local.LocalIdentifier) metadata.MD {
	md := metadata.MD{}
	for name, list := range map[string][]string{
		"dir-name":         {id.Name},
		"include-patterns": id.IncludePatterns,
		"exclude-patterns": id.ExcludePatterns,
		"followpaths":      id.FollowPaths,
	} {
		if list == nil {
			continue
		}
		beyond := func(r rune) bool { return r > unicode.MaxASCII }
		if slices.ContainsFunc(list, func(s string) bool { return strings.ContainsFunc(s, beyond) }) {
			list = slices.Clone(list)
			for i := range list {
				list[i] = url.QueryEscape(list[i])
			}
			md[name+"-encoded"] = []string{"1"}
		}
		md[name] = list
	}
	return md
}

// moving is the progress of a transfer.
type moving struct {
	w    progress.Writer
	name string
	at   progress.Status
	told time.Time
}

// movingEvery is how often progress is told.
const movingEvery = 100 * time.Millisecond

func newMoving(ctx context.Context, name string) *moving {
	w, _, _ := progress.NewFromContext(ctx) // without anybody who listens, one that throws away
	now := time.Now()
	m := &moving{w: w, name: "transferring " + name + ":", at: progress.Status{Action: "transferring", Started: &now}}
	_ = w.Write(m.name, m.at)
	return m
}

// moved says how many bytes have come, and with last that this was all.
func (m *moving) moved(bytes int, last bool) {
	now := time.Now()
	if !last && now.Sub(m.told) < movingEvery {
		return
	}
	m.told, m.at.Current = now, bytes
	if last {
		m.at.Completed = &now
	}
	_ = m.w.Write(m.name, m.at)
	if last {
		_ = m.w.Close()
	}
}
