"""nodes/netns"""
