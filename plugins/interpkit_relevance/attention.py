class AttentionRollout: pass
