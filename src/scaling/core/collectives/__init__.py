"""Collective communication: plain operations, their differentiable pairs, and trees of tensors."""
