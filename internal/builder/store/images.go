package store

import (
	"context"

	api "github.com/containerd/containerd/api/services/images/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// imageService serves an image store.
type imageService struct {
	store images.Store
	api.UnimplementedImagesServer
}

func protoImage(i images.Image) *api.Image {
	return &api.Image{
		Name: i.Name, Labels: i.Labels, Target: oci.DescriptorToProto(i.Target),
		CreatedAt: timestamppb.New(i.CreatedAt), UpdatedAt: timestamppb.New(i.UpdatedAt),
	}
}

// imageOf takes a message that may lack anything.
func imageOf(i *api.Image) images.Image {
	target := i.GetTarget()
	if target == nil {
		target = &types.Descriptor{}
	}
	return images.Image{Name: i.GetName(), Labels: i.GetLabels(), Target: oci.DescriptorFromProto(target)}
}

func (s *imageService) Get(ctx context.Context, r *api.GetImageRequest) (*api.GetImageResponse, error) {
	i, err := s.store.Get(ctx, r.Name)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	return &api.GetImageResponse{Image: protoImage(i)}, nil
}

func (s *imageService) List(ctx context.Context, r *api.ListImagesRequest) (*api.ListImagesResponse, error) {
	all, err := s.store.List(ctx, r.Filters...)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	out := &api.ListImagesResponse{}
	for _, i := range all {
		out.Images = append(out.Images, protoImage(i))
	}
	return out, nil
}

func (s *imageService) Create(ctx context.Context, r *api.CreateImageRequest) (*api.CreateImageResponse, error) {
	i, err := s.store.Create(ctx, imageOf(r.Image))
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	return &api.CreateImageResponse{Image: protoImage(i)}, nil
}

func (s *imageService) Update(ctx context.Context, r *api.UpdateImageRequest) (*api.UpdateImageResponse, error) {
	i, err := s.store.Update(ctx, imageOf(r.Image), r.UpdateMask.GetPaths()...)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	return &api.UpdateImageResponse{Image: protoImage(i)}, nil
}

func (s *imageService) Delete(ctx context.Context, r *api.DeleteImageRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, errgrpc.ToGRPC(s.store.Delete(ctx, r.Name))
}
