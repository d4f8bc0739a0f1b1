// Package store shows the image store to a builder in another process: as
// containerd's gRPC services for content, snapshots, diff, leases and images,
// and one method of its own. It owns nothing and decides nothing: every call
// is one call of the image store, which has one namespace whatever a caller
// says. A lease comes with a call in its header, as containerd's clients send
// it. Package build/store is the other end.
//
//	containerd.services.content.v1.Content      image.Store.Content
//	containerd.services.snapshots.v1.Snapshots  image.Store.Snapshots
//	containerd.services.diff.v1.Diff            image.Store.Snapshots
//	containerd.services.leases.v1.Leases        image.Store.LeaseManager
//	containerd.services.images.v1.Images        image.Store.Images
//	proa.Store/Collect                          image.Store.Collect
package store

import (
	"context"
	"fmt"
	"runtime/debug"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/diffservice"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/containerd/v2/plugins/services/content/contentserver"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"proa/internal/image"
)

// Service and Collect are the names of the method that containerd has no
// service for.
const (
	Service = "proa.Store"
	Collect = "Collect"
)

// MaxMessage is how large a message may be, in bytes. The largest are those of
// contents, of a little over 1 MiB.
const MaxMessage = 16 << 20

// Options are what a server of the store needs: panics of a handler become
// errors of that call, and warn, which may be nil, gets them with their place.
func Options(warn func(error)) []grpc.ServerOption {
	caught := func(method string, err *error) {
		r := recover()
		if r == nil {
			return
		}
		*err = status.Errorf(codes.Internal, "the engine's store failed at %s: %v", method, r)
		if warn != nil {
			warn(fmt.Errorf("panic in %s: %v\n%s", method, r, debug.Stack()))
		}
	}
	return []grpc.ServerOption{
		grpc.MaxRecvMsgSize(MaxMessage), grpc.MaxSendMsgSize(MaxMessage),
		grpc.ChainUnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (_ any, err error) {
			defer caught(info.FullMethod, &err)
			return next(ctx, req)
		}),
		grpc.ChainStreamInterceptor(func(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) (err error) {
			defer caught(info.FullMethod, &err)
			return next(srv, stream)
		}),
	}
}

// Register adds the services to srv, which was made with Options.
func Register(srv grpc.ServiceRegistrar, s *image.Store) {
	contentapi.RegisterContentServer(srv, contentserver.New(s.Content()))
	snapshotsapi.RegisterSnapshotsServer(srv, snapshotservice.FromSnapshotter(s.Snapshots()))
	diffapi.RegisterDiffServer(srv, diffservice.FromApplierAndComparer(s.Snapshots(), s.Snapshots()))
	leasesapi.RegisterLeasesServer(srv, &leaseService{lm: s.LeaseManager()})
	imagesapi.RegisterImagesServer(srv, &imageService{store: s.Images()})
	srv.RegisterService(&grpc.ServiceDesc{
		ServiceName: Service,
		HandlerType: (*any)(nil),
		Methods:     []grpc.MethodDesc{{MethodName: Collect, Handler: collect}},
	}, s)
}

func collect(srv any, ctx context.Context, decode func(any) error, wrap grpc.UnaryServerInterceptor) (any, error) {
	var req emptypb.Empty
	if err := decode(&req); err != nil {
		return nil, err
	}
	do := func(ctx context.Context, _ any) (any, error) {
		return &emptypb.Empty{}, errgrpc.ToGRPC(srv.(*image.Store).Collect(ctx))
	}
	if wrap == nil {
		return do(ctx, &req)
	}
	return wrap(ctx, &req, &grpc.UnaryServerInfo{Server: srv, FullMethod: "/" + Service + "/" + Collect}, do)
}
