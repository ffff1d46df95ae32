"""Input data: data sets, packed once and identified by a content hash; external pictures; latents on the disk."""
