"""What tests share: servers, clusters, small disks, tiny models."""
