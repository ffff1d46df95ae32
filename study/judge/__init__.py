"""How good pictures and latents are: judges, the references they compare with, and the numbers."""
