"""The machines that trials run on: this one or a Ray cluster's nodes, checked, prepared and given shared storage."""
