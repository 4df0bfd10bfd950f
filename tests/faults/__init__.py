"""What must survive: kills, full disks, damage, two writers at once, and hostile names."""
