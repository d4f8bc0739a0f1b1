package store

import (
	"context"

	api "github.com/containerd/containerd/api/services/images/v1"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
)

// imageStore is images.Store over its service. containerd's own is part of its
// whole client.
type imageStore struct{ client api.ImagesClient }

func protoImage(i images.Image) *api.Image {
	return &api.Image{Name: i.Name, Labels: i.Labels, Target: oci.DescriptorToProto(i.Target)}
}

func imageOf(i *api.Image) images.Image {
	return images.Image{
		Name: i.GetName(), Labels: i.GetLabels(), Target: oci.DescriptorFromProto(i.GetTarget()),
		CreatedAt: i.GetCreatedAt().AsTime(), UpdatedAt: i.GetUpdatedAt().AsTime(),
	}
}

func (s *imageStore) Get(ctx context.Context, name string) (images.Image, error) {
	r, err := s.client.Get(ctx, &api.GetImageRequest{Name: name})
	if err != nil {
		return images.Image{}, errgrpc.ToNative(err)
	}
	return imageOf(r.Image), nil
}

func (s *imageStore) List(ctx context.Context, filters ...string) ([]images.Image, error) {
	r, err := s.client.List(ctx, &api.ListImagesRequest{Filters: filters})
	if err != nil {
		return nil, errgrpc.ToNative(err)
	}
	var out []images.Image
	for _, i := range r.Images {
		out = append(out, imageOf(i))
	}
	return out, nil
}

func (s *imageStore) Create(ctx context.Context, i images.Image) (images.Image, error) {
	r, err := s.client.Create(ctx, &api.CreateImageRequest{Image: protoImage(i)})
	if err != nil {
		return images.Image{}, errgrpc.ToNative(err)
	}
	return imageOf(r.Image), nil
}

func (s *imageStore) Update(ctx context.Context, i images.Image, fields ...string) (images.Image, error) {
	req := &api.UpdateImageRequest{Image: protoImage(i)}
	if len(fields) > 0 {
		req.UpdateMask = &fieldmaskpb.FieldMask{Paths: fields}
	}
	r, err := s.client.Update(ctx, req)
	if err != nil {
		return images.Image{}, errgrpc.ToNative(err)
	}
	return imageOf(r.Image), nil
}

func (s *imageStore) Delete(ctx context.Context, name string, _ ...images.DeleteOpt) error {
	_, err := s.client.Delete(ctx, &api.DeleteImageRequest{Name: name})
	return errgrpc.ToNative(err)
}
