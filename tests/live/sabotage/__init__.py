"""The sabotage suite: can each check fail?"""
