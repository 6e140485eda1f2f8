"""CEPO: Contrastive Evidence Policy Optimization (arXiv:2605.19436), trained by four services."""
