"""Images in: data sets packed once and known by their content, pictures of others, latents on the disk."""
