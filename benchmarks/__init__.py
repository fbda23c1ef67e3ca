"""What ebrm costs, beside a plain implementation of the same algorithm and beside the work it sits next to."""
