"""The endpoints of OpenAI's audio API that write down what is said."""
