"""The methods: pure functions of tensors, and one small class each. No I/O."""
