"""What is trained: tokenizers, the VF loss, generators, the flow and its samplers; plain PyTorch.

Conventions, stated once and kept everywhere:

- Time: t = 0 is noise, t = 1 is data, and velocity is data minus noise. Foreign weights with another
  convention are converted where they are loaded, nowhere else.
- Pixels: float NCHW in [-1, 1]. A decoder may overshoot; whoever needs uint8 clamps.
- `latent_raw` leaves the tokenizer, `latent` is normalised per channel and feeds the generator. Nothing in
  this package converts one to the other.
- Randomness: no forward draws any. Noise, times and label drops are arguments, so a batch decides nothing
  that its seeds do not. Initialisation takes a torch.Generator.
- Letters in shapes: B batch, C channels, H W height and width, N tokens, D width, M heads, E width per
  head.

`models.specs` holds names, sizes and costs without importing torch, so that planning a study starts at
once.
"""
