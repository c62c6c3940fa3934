"""What is transferred from a recording to speech: words with their times, segments, durations, F0 and energy."""
