"""The optimizer: gradients reduced in buckets, one fused update of each rank's shard (ZeRO-1), schedules, scaling."""
