"""What an Ansible inventory says of a fleet: read, merged and checked as a whole before anything is touched."""
