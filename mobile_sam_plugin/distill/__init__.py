"""The paper's method: teacher embeddings, decoupled distillation, its data and its evaluation."""
