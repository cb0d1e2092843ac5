"""What training reads: folders of sharp images, and the crops drawn from them."""
