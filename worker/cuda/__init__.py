"""What a worker on a GPU computes with: kernels in Triton. Everything else imports no Triton."""
