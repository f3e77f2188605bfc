"""A blinded human ranking of pictures: its design, the page that raters see, ballots, and what they say."""
