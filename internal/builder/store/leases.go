package store

import (
	"context"

	api "github.com/containerd/containerd/api/services/leases/v1"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// leaseService serves a lease manager.
type leaseService struct {
	lm leases.Manager
	api.UnimplementedLeasesServer
}

func protoLease(l leases.Lease) *api.Lease {
	return &api.Lease{ID: l.ID, Labels: l.Labels, CreatedAt: timestamppb.New(l.CreatedAt)}
}

func (s *leaseService) Create(ctx context.Context, r *api.CreateRequest) (*api.CreateResponse, error) {
	id := leases.WithRandomID()
	if r.ID != "" {
		id = leases.WithID(r.ID)
	}
	l, err := s.lm.Create(ctx, id, leases.WithLabels(r.Labels))
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	return &api.CreateResponse{Lease: protoLease(l)}, nil
}

func (s *leaseService) Delete(ctx context.Context, r *api.DeleteRequest) (*emptypb.Empty, error) {
	var opts []leases.DeleteOpt
	if r.Sync {
		opts = append(opts, leases.SynchronousDelete)
	}
	return &emptypb.Empty{}, errgrpc.ToGRPC(s.lm.Delete(ctx, leases.Lease{ID: r.ID}, opts...))
}

func (s *leaseService) List(ctx context.Context, r *api.ListRequest) (*api.ListResponse, error) {
	all, err := s.lm.List(ctx, r.Filters...)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	out := &api.ListResponse{}
	for _, l := range all {
		out.Leases = append(out.Leases, protoLease(l))
	}
	return out, nil
}

func (s *leaseService) AddResource(ctx context.Context, r *api.AddResourceRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, errgrpc.ToGRPC(s.lm.AddResource(ctx, leases.Lease{ID: r.ID}, resource(r.Resource)))
}

func (s *leaseService) DeleteResource(ctx context.Context, r *api.DeleteResourceRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, errgrpc.ToGRPC(s.lm.DeleteResource(ctx, leases.Lease{ID: r.ID}, resource(r.Resource)))
}

// resource takes one that a message may lack: then it names nothing.
func resource(r *api.Resource) leases.Resource {
	return leases.Resource{ID: r.GetID(), Type: r.GetType()}
}

func (s *leaseService) ListResources(ctx context.Context, r *api.ListResourcesRequest) (*api.ListResourcesResponse, error) {
	all, err := s.lm.ListResources(ctx, leases.Lease{ID: r.ID})
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	out := &api.ListResourcesResponse{}
	for _, r := range all {
		out.Resources = append(out.Resources, &api.Resource{ID: r.ID, Type: r.Type})
	}
	return out, nil
}
