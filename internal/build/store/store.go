// Package store is the engine's image store as a builder in another process
// sees it: containerd's interfaces over containerd's gRPC services. It keeps
// nothing and caches nothing. The namespace of a context does not matter, the
// engine has one; a lease of the context goes with each call. Package
// builder/store is the other end and says what each service is.
package store

import (
	"context"
	"fmt"
	"time"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/content"
	contentproxy "github.com/containerd/containerd/v2/core/content/proxy"
	"github.com/containerd/containerd/v2/core/diff"
	diffproxy "github.com/containerd/containerd/v2/core/diff/proxy"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	leasesproxy "github.com/containerd/containerd/v2/core/leases/proxy"
	"github.com/containerd/containerd/v2/core/snapshots"
	snapshotsproxy "github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/pkg/gc"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/emptypb"

	"proa/internal/build/wire"
)

// maxMessage is that of the other end, in bytes.
const maxMessage = 16 << 20

// Client is the engine's store. It may be used by many goroutines.
type Client struct {
	Content   content.Store
	Snapshots snapshots.Snapshotter
	Applier   diff.Applier
	Differ    diff.Comparer
	Leases    leases.Manager
	Images    images.Store

	conn grpc.ClientConnInterface
}

// Dial makes a connection to the engine's socket, over which other services of
// the engine may be called as well. It connects when it is used first.
func Dial(socket string) (*grpc.ClientConn, error) {
	conn, err := grpc.NewClient("unix:"+socket,
		grpc.WithTransportCredentials(insecure.NewCredentials()), // a socket that only root can open
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)),
		grpc.WithNoProxy(),
	)
	if err != nil {
		return nil, fmt.Errorf("cannot reach the engine at %q: %w", socket, err)
	}
	return conn, nil
}

// New gives the store at the other end of conn, which stays the caller's.
func New(conn grpc.ClientConnInterface) *Client {
	differ := diffproxy.NewDiffApplier(diffapi.NewDiffClient(conn))
	return &Client{
		Content:   contentproxy.NewContentStore(contentapi.NewContentClient(conn)),
		Snapshots: snapshotsproxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), wire.Snapshotter),
		Applier:   differ.(diff.Applier),
		Differ:    differ.(diff.Comparer),
		Leases:    leasesproxy.NewLeaseManager(leasesapi.NewLeasesClient(conn)),
		Images:    &imageStore{imagesapi.NewImagesClient(conn)},
		conn:      conn,
	}
}

// Collect removes from the engine's store what no lease and no image needs.
// While something is being made there, it is removed soon after.
func (c *Client) Collect(ctx context.Context) (gc.Stats, error) {
	begin := time.Now()
	if err := c.conn.Invoke(ctx, "/proa.Store/Collect", &emptypb.Empty{}, &emptypb.Empty{}); err != nil {
		return nil, fmt.Errorf("cannot collect what is not needed: %w", errgrpc.ToNative(err))
	}
	return took(time.Since(begin)), nil
}

// took is how long a collection took.
type took time.Duration

// Elapsed is that time.
func (t took) Elapsed() time.Duration { return time.Duration(t) }
