"""MobileNet_V2 with a head of our own: what it is made of and what of it learns."""
